"""``python -m llm_rerank`` is the command line."""

from llm_rerank.cli import main

if __name__ == "__main__":
    main()
