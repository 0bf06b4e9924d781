"""Answers prompts greedily with llama.cpp (xllamacpp): MODEL.gguf [ADAPTER.gguf], prompts as JSON on stdin.

Prints one JSON list of {"prompt_tokens", "ids", "logprobs"} as its last line.
"""

import json
import sys

import xllamacpp


def served(model, adapter):
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.warmup, parameters.n_parallel = model, 256, False, 1
    if adapter:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    return xllamacpp.Server(parameters)


def answer(server, prompt, tokens):
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "n_probs": 1, "cache_prompt": False}
    found = server.handle_completions({**body, "stream": False})
    content = found["choices"][0]["logprobs"]["content"]
    return {
        "prompt_tokens": found["usage"]["prompt_tokens"],
        "ids": [token["id"] for token in content],
        "logprobs": [token["logprob"] for token in content],
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    server = served(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
    print("\n" + json.dumps([answer(server, prompt, asked["tokens"]) for prompt in asked["prompts"]]))
