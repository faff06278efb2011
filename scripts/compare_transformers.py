#!/usr/bin/env python3
"""The training step of `train bench step` in Hugging Face transformers: same model, shapes, loss, clipping and optimizer.

    python3 scripts/compare_transformers.py --model .demo/llm [--ours step.json]

Needs torch (the version of .deps), transformers and safetensors; not part of `make setup`.
"""
import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM


def step_seconds(args, dtype):
    # A copy of the weights in f32, blocks in the asked kind, as `train` does.
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="sdpa")
    model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01)
    torch.manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (args.batch, args.tokens), device=args.device)
    targets = torch.zeros(args.batch, dtype=torch.long, device=args.device)
    fastest = float("inf")
    for repeat in range(args.repeats + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
            # The loss reads the last token alone: transformers is spared the other logits too.
            logits = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()
        if repeat > 0:
            fastest = min(fastest, time.perf_counter() - start)
    return fastest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model directory, as written by `train import`")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--ours", help="JSON of `train bench step --json`, to print the ratio")
    args = parser.parse_args()
    theirs = step_seconds(args, args.dtype)
    print(f"transformers  {theirs:.4f} s, {args.batch * args.tokens / theirs:.0f} tokens/s")
    if args.ours:
        with open(args.ours, encoding="utf-8") as file:
            ours = json.load(file)
        shape = (ours["batch"], ours["tokens"], ours["dtype"])
        if shape != (args.batch, args.tokens, args.dtype):
            raise SystemExit(f"{args.ours}: measured on {shape}, here {(args.batch, args.tokens, args.dtype)}")
        print(f"train         {ours['full_seconds']:.4f} s")
        print(f"ratio         {theirs / ours['full_seconds']:.2f} (above 1: train is faster)")


if __name__ == "__main__":
    main()
