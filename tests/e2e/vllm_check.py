"""Serve a checkpoint folder with vLLM on the CPU and compare its greedy token ids with transformers', in float32.

python tests/e2e/vllm_check.py --vllm-python .venv-vllm/bin/python FOLDER [FOLDER ...]

Exits with 0 where every answer is the same, with 1 where one is not or the server failed.
"""

import argparse
import sys
from pathlib import Path

from servers import MAX_TOKENS, ServerError, disagreement, reference, serve_vllm, server_python


def main() -> int:
    """Check each folder; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=server_python("SURGEON_VLLM_PYTHON"), help="of vLLM's environment")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    try:
        return max([check(arguments.vllm_python, folder.resolve()) for folder in arguments.folders])
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1


def check(python: str, folder: Path) -> int:
    """Print one line a prompt; return 0 where all agree, else 1."""
    expected = reference(folder)
    wrong = 0
    with serve_vllm(python, folder) as server:
        print(f"{folder}\n{'tokens':>6}  {'same':4}  prompt")
        for greedy in expected:
            difference = disagreement(greedy, server.complete(greedy.prompt, MAX_TOKENS))
            print(f"{len(greedy.ids):6}  {'no' if difference else 'yes':4}  {difference or repr(greedy.prompt)}")
            wrong += difference is not None
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
