# The S3 client that `make setup` builds (scripts/get_awscrt.py): target thaw::awscrt where it is wanted and there.
set(THAW_AWSCRT_DIR ${CMAKE_SOURCE_DIR}/.deps/awscrt CACHE PATH "Where scripts/get_awscrt.py put the S3 client")
set(THAW_S3 AUTO CACHE STRING "s3:// URLs: ON, OFF, or AUTO for what is there")
set(archive ${THAW_AWSCRT_DIR}/lib/libthaw_awscrt.a)
if(THAW_S3 STREQUAL "AUTO" AND NOT EXISTS ${archive})
  message(STATUS "No S3 client in ${THAW_AWSCRT_DIR}: s3:// URLs will be refused (make setup builds it)")
elseif(THAW_S3)
  if(NOT EXISTS ${archive})
    message(FATAL_ERROR "THAW_S3 is on, and there is no S3 client in ${THAW_AWSCRT_DIR}: make setup, or -DTHAW_S3=OFF")
  endif()
  add_library(thaw_awscrt STATIC IMPORTED)
  set_target_properties(thaw_awscrt PROPERTIES
    IMPORTED_LOCATION ${archive}
    INTERFACE_INCLUDE_DIRECTORIES ${THAW_AWSCRT_DIR}/include
    INTERFACE_COMPILE_DEFINITIONS AWS_ENABLE_EPOLL
    INTERFACE_LINK_LIBRARIES "OpenSSL::Crypto;Threads::Threads;${CMAKE_DL_LIBS};m;rt")
  add_library(thaw::awscrt ALIAS thaw_awscrt)
endif()
