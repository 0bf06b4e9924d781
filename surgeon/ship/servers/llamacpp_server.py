"""llama.cpp's server, as the package xllamacpp holds it: `python llamacpp_server.py --model M.gguf --port 8080`.

Run as a file, by an interpreter that has xllamacpp and need not have surgeon.
"""

import argparse
import importlib
import threading
from typing import Any


def main() -> None:
    """Serve one GGUF file on 127.0.0.1 until the process is ended."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--lora", action="append", default=[])
    given = parser.parse_args()
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.hostnames, settings.port = given.model, ["127.0.0.1"], given.port
    settings.n_ctx, settings.warmup = 512, False
    settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in given.lora]
    server = xllamacpp.Server(settings)
    print(f"serving on {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
