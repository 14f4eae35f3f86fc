from thaw_vllm.cli import main

if __name__ == "__main__":
    main()
