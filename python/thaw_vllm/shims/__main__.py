from thaw_vllm.shims import DIRECTORY

print(DIRECTORY)
