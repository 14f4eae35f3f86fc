# The grammar library that `make setup` builds (scripts/get_xgrammar.py): target thaw::xgrammar where it is wanted and there.
set(THAW_XGRAMMAR_DIR ${CMAKE_SOURCE_DIR}/.deps/xgrammar CACHE PATH "Where scripts/get_xgrammar.py put the grammar library")
set(THAW_GRAMMAR AUTO CACHE STRING "Grammars (structured output): ON, OFF, or AUTO for what is there")
set(archive ${THAW_XGRAMMAR_DIR}/lib/libthaw_xgrammar.a)
if(THAW_GRAMMAR STREQUAL "AUTO" AND NOT EXISTS ${archive})
  message(STATUS "No grammar library in ${THAW_XGRAMMAR_DIR}: requests with a grammar will be refused (make setup builds it)")
elseif(THAW_GRAMMAR)
  if(NOT EXISTS ${archive})
    message(FATAL_ERROR "THAW_GRAMMAR is on, and there is no grammar library in ${THAW_XGRAMMAR_DIR}: make setup, or -DTHAW_GRAMMAR=OFF")
  endif()
  add_library(thaw_xgrammar STATIC IMPORTED)
  set_target_properties(thaw_xgrammar PROPERTIES
    IMPORTED_LOCATION ${archive}
    INTERFACE_INCLUDE_DIRECTORIES ${THAW_XGRAMMAR_DIR}/include
    INTERFACE_LINK_LIBRARIES Threads::Threads)
  add_library(thaw::xgrammar ALIAS thaw_xgrammar)
endif()
