"""Outputs and gradients of tiny transformers: `python tests/kernel_runs.py FILE [DEVICE [DTYPE]]`, a process of its own.

Whether our own kernels are used is decided once a process: on a CPU they are with LTX_NB_KERNELS=1 and TRITON_INTERPRET=1, on a GPU without
LTX_NB_KERNELS=0. FILE gets a safetensors file of what was computed."""

import sys
from dataclasses import fields, replace

import torch
from safetensors.torch import save_file
from transformer_cases import CASES, fill, inputs, tiny_header

from ltx_nb.loading.lora import add_lora
from ltx_nb.loading.quantization import quantize_model
from ltx_nb.model.devices import fused_kernels
from ltx_nb.model.transformer import LTXModel, Perturbations

WHOLE = ("V1-int", "V1-split", "V2", "V2 no audio", "V2 one apart", "V2 uniform")  # cases where kernels differ
QUANTIZED = {"int8": "V2", "nf4": "V1-int"}  # format -> case


def moved(modality, device, dtype):
    "Positions and levels stay in float32."
    there = {f.name: getattr(modality, f.name) for f in fields(modality)}
    there = {name: value.to(device) for name, value in there.items() if torch.is_tensor(value)}
    return replace(modality, **there | {name: there[name].to(dtype) for name in ("latent", "context")})


def computed(case, device, dtype, quantization=None):
    "Velocities and gradients of a LoRA, by name."
    variant, kind, change = CASES[case]
    video, audio, skips = change(*inputs(variant, kind))
    model = LTXModel.from_config(tiny_header(variant), kind)
    model.load_state_dict(fill(model.state_dict()))
    if quantization:
        quantize_model(model, quantization)
    add_lora(model.requires_grad_(False), 4, 4, ["to_q", "to_k", "to_v", "to_out.0"])
    lora = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for name, numbers in fill(lora, 2).items():
        lora[name].data.copy_(numbers)
    model.to(device, dtype)
    given = [m and moved(m, device, dtype) for m in (video, audio)]
    velocities = [v for v in model(*given, Perturbations(skips) if skips else None) if v is not None]
    sum(v.float().square().sum() for v in velocities).backward()
    found = {f"velocity {i}": velocity for i, velocity in enumerate(velocities)}
    return found | {name: weight.grad for name, weight in lora.items() if weight.grad is not None}


if __name__ == "__main__":
    path, device, dtype = [*sys.argv[1:], "cpu", "float32"][:3]
    told = {"kernels": str(fused_kernels(torch.device(device)) is not None)}
    cases = [(case, None) for case in WHOLE] + [(case, name) for name, case in QUANTIZED.items()]
    found = {
        f"{case}, {quantization}: {name}": tensor.detach().float().cpu().contiguous()
        for case, quantization in cases
        for name, tensor in computed(case, torch.device(device), getattr(torch, dtype), quantization).items()
    }
    save_file(found, path, told)
