"""Golden bytes: what tier A promises on any CPU of one architecture, as one sha256 a method on made models.

The inputs come from integer arithmetic alone, so that they are the same everywhere. A digest here changes only with the
formula of a method, and then the changelog says so.
"""

import hashlib
import platform
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import surgeon
from surgeon.space.schedule import Layers
from surgeon.testing.toys import write_checkpoint

SHAPES = {
    "model.embed_tokens.weight": (67, 129),
    "model.layers.0.mlp.up_proj.weight": (131, 129),
    "model.layers.1.mlp.up_proj.weight": (131, 129),
    "model.layers.1.input_layernorm.weight": (129,),
    "model.norm.weight": (129,),
}

GOLDEN = {
    "inputs": "7d44b67ebf5ddd8b4f47c25a0938a912da57465283dd51f26185df7a0dd5e7f0",
    "linear": "86efc83895253ecc0a8d88c84722eeb506014033fb7e032c201d755e03ffdc2f",
    "combination": "81f68007e306a93f2347fd2e5985c1350cc7199893975146779e6617dd3986e1",
    "task_arithmetic": "e3898fa85d3939f0266d959ff93007b232340da51776ed1fce01b6aa1405ed3c",
    "ties": "65962b1b71b67b2d737f49944511ffeb6f4887f516888db21ade2b037deda703",
    "ties over the model": "8d1132b93bea54b8f606344bbb9707c88d5226d635d62ee092b273abf68654f3",
    "dare_ties": "550a439362d56bc211c98e1fd26465b58dcd83932bfa51b619a8b194d195bf85",
    "dare_linear by norm": "b0282848cb92b5de68b53cbf47c1d15e7847eed9354af05922987300046ad3cc",
    "breadcrumbs_ties": "18c296cde0a9e19bff76d3da89b6bded4955877ad1b80a929c71c5546773009d",
    "sce": "2c18a4d4d3a1c9f238fcdaa5268f00c5c822407335a56c49c2d8372362ef8aab",
    "ramplus_tl": "24ca2192ccfd3b59ad57f782933927f0125488d9915f403f8bd99bfa3962f2f4",
    "pcb": "4ac7902e1c28104868aa0f2db4d0c0eabb8a3bcb73078f7f0de9587f23da2c0d",
    "emr": "38ffbcde098ed0cd1482c49213b89f585be7cedc7a07d4f8d724b178f6d509ce",
    "consensus": "20ce602d66e0837e09b5382f2efb6e639c4f9cda600d1e2c34adced5635d7728",
    "slerp": "5aef89d094cfa0748d8f48b65b4ca10cf71a0f1344050279d15aec7a15198237",
    "karcher": "ad686bb2d7e120080183fc5c9f881f02ec0ac3981c9b612fc51803f59f041a3d",
    "multislerp": "2c34e8a5c9fb0910d14e63aff8f3a0a4dd4f362d4093907a91f58fb09425cdb1",
    "nearswap": "971fc515cc6619ea727d95043e168ceb9cc748a28795ed0c7d39c4748bee6d22",
    "ema": "451f8240ee232d7bf943b0d0bbd4bb3380035f78eb1d7ed0480dd9e91d530a3a",
}

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="digests of x86-64")


def made(seed: int) -> dict[str, torch.Tensor]:
    """Numbers k/512 in [-1, 1), by a linear congruence: exact in bf16 to 8 bits, with many equal magnitudes."""
    tensors, state = {}, seed * 2654435761 + 12345
    for name, shape in SHAPES.items():
        count = torch.Size(shape).numel()
        index = torch.arange(count, dtype=torch.int64)
        mixed = (index * 1103515245 + state) % 2147483647
        mixed = (mixed * 48271) % 2147483647
        tensors[name] = ((mixed % 1024) - 512).float().div(512).reshape(shape).bfloat16()
        state = (state * 69069 + 1) % 2147483647
    return tensors


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_bytes_are_those_of_every_other_machine(tmp_path: Path, kind: str):
    paths = [write_checkpoint(tmp_path / name, made(seed)) for seed, name in enumerate("abc")]
    a, b, c = map(surgeon.open, paths)
    expr = {
        "inputs": b,
        "linear": surgeon.merge("linear", [a, b, c], weight=[0.5, 0.3, 0.1]),
        "combination": a + 0.6 * (b - a) - Layers((Fraction(1, 10), Fraction(2, 5))) * (c - a),
        "task_arithmetic": surgeon.merge("task_arithmetic", [b, c], base_model=a, weight=[0.7, -0.2], lambda_=0.9),
        "ties": surgeon.merge("ties", [b, c], base_model=a, weight=[0.6, 0.4], density=[0.3, 0.55]),
        "ties over the model": surgeon.merge("ties", [b, c], base_model=a, density=0.3, over="model"),
        "dare_ties": surgeon.merge("dare_ties", [b, c], base_model=a, weight=[0.6, 0.4], density=[0.3, 0.55], seed=5),
        "dare_linear by norm": surgeon.merge("dare_linear", [b, c], base_model=a, density=0.4, rescale_by="norm"),
        "breadcrumbs_ties": surgeon.merge("breadcrumbs_ties", [b, c], base_model=a, density=[0.3, 0.55], gamma=0.1),
        "sce": surgeon.merge("sce", [b, c], base_model=a, select_topk=0.4),
        "ramplus_tl": surgeon.merge("ramplus_tl", [b, c], base_model=a, epsilon=0.1, r=0.3),
        "pcb": surgeon.merge("pcb", [b, c], base_model=a, density=0.3),
        "emr": surgeon.merge("emr", [b, c], base_model=a),
        "consensus": surgeon.merge("consensus", [b, c], base_model=a, weight=0.4),
        "slerp": surgeon.merge("slerp", [b], base_model=a, t=Layers((Fraction(1, 5), Fraction(4, 5)))),
        "karcher": surgeon.merge("karcher", [a, b, c], weight=[0.5, 0.3, 0.2]),
        "multislerp": surgeon.merge("multislerp", [b, c], base_model=a, weight=[0.7, 0.4]),
        "nearswap": surgeon.merge("nearswap", [b], base_model=a, t=0.3),
        "ema": surgeon.merge("ema", [a, b, c], decay=0.6),
    }[kind]
    for dtype in (None, "float32"):
        plan = surgeon.plan(expr, dtype=dtype)
        assert plan.tier == "A"
    surgeon.apply(expr, tmp_path / "out", dtype="float32")
    assert digest(tmp_path / "out") == GOLDEN[kind]
