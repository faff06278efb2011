#!/usr/bin/env python3
"""What each choice of `export --precision int8` costs, one at a time: a student's LLM with fake-quantised maps, in f32.

    python3 scripts/fake_quantise.py --student .demo/student --bundle .demo/bundle --data data/home-robot

Needs torch, transformers, safetensors and tokenizers; not part of `make setup`. Coordinates are turned (by a random rotation: which one
hardly matters), the prompt before a text is exact, as in the graphs. Printed is the root mean square error of a text's latents, in units
of their deviation between texts.
"""
import argparse
import json
import pathlib
import random

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaModel

NORMED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


class Student:
    """The student's LLM in turned coordinates, cut behind its deepest latent, and texts to run."""

    def __init__(self, args):
        config = json.loads((args.student / "config.json").read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        manifest = json.loads((args.bundle / "manifest.json").read_text(encoding="utf-8"))
        self.latents = manifest["predictor"]["latents"]["layers"]
        self.prefixes = manifest["encoder"]["prefixes"]
        self.prompt = len(self.prefixes[0])
        assert all(len(prefix) == self.prompt for prefix in self.prefixes), "prompts of different lengths"
        assert max(self.latents) < config["num_hidden_layers"], "the library norms the last layer's states"
        # Of the layer behind the deepest latent nothing is used; without it the library norms the last hidden state.
        depth = max(self.latents) + 1
        self.model = LlamaModel(LlamaConfig(**{**config, "num_hidden_layers": depth})).eval()
        weights = load_file(args.student / "model.safetensors")
        known = self.model.state_dict()
        self.model.load_state_dict({name: weights["model." + name] for name in known})
        self.tokenizer = Tokenizer.from_file(str(args.student / "tokenizer.json"))
        self.turn()
        self.maps = {}
        for index, layer in enumerate(self.model.layers):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                self.maps[index, name] = getattr(layer.self_attn, name)
            for name in ("gate_proj", "up_proj", "down_proj"):
                self.maps[index, name] = getattr(layer.mlp, name)
        self.exact = {key: module.weight.data.clone() for key, module in self.maps.items()}
        for key, module in self.maps.items():
            module.forward = self.forward_of(key, module)
        self.rounded, self.activation = {}, {}
        self.seen = None

    def turn(self):
        size, head = self.model.config.hidden_size, self.model.config.head_dim
        stream, _ = torch.linalg.qr(torch.randn(size, size))
        heads, _ = torch.linalg.qr(torch.randn(head, head))
        self.model.embed_tokens.weight.data @= stream
        for layer in self.model.layers:
            norms = (layer.input_layernorm, layer.post_attention_layernorm)
            gains = [norm.weight.data.clone() for norm in norms]
            for norm in norms:
                norm.weight.data.fill_(1)
            block, mlp = layer.self_attn, layer.mlp
            for module in (block.q_proj, block.k_proj, block.v_proj):
                module.weight.data = (module.weight.data * gains[0]) @ stream
            for module in (mlp.gate_proj, mlp.up_proj):
                module.weight.data = (module.weight.data * gains[1]) @ stream
            block.v_proj.weight.data = torch.cat([heads.T @ w for w in block.v_proj.weight.data.split(head)])
            turned = [w @ heads for w in block.o_proj.weight.data.split(head, 1)]
            block.o_proj.weight.data = stream.T @ torch.cat(turned, 1)
            mlp.down_proj.weight.data = stream.T @ mlp.down_proj.weight.data

    def forward_of(self, key, module):
        def forward(x):
            prompt, text = x[:, : self.prompt], x[:, self.prompt :]
            if self.seen is not None and key[1] == "down_proj":
                self.seen[key[0]] = torch.maximum(self.seen[key[0]], text[0].abs().amax(0))
            if key in self.activation:
                text = self.activation[key](text)
            exact = self.exact[key]
            return torch.cat([prompt @ exact.T, text @ self.rounded.get(key, exact).T], 1)

        return forward

    @torch.no_grad()
    def run(self, texts):
        rows = []
        for side, text in texts:
            ids = self.prefixes[side % len(self.prefixes)] + self.tokenizer.encode(text, add_special_tokens=False).ids[:150]
            states = self.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
            rows.append(torch.cat([states[layer][0, self.prompt :].mean(0) for layer in self.latents]))
        return torch.stack(rows)

    def largest(self, texts):
        """By layer, the largest magnitude of each neuron."""
        self.seen = {index: torch.zeros(self.model.config.intermediate_size) for index in range(len(self.model.layers))}
        self.run(texts)
        seen, self.seen = self.seen, None
        return seen


def by_rows(weight, most):
    scale = weight.abs().amax(1, keepdim=True) / most
    return (weight / scale).round() * scale


def in_pairs(weight):
    a, b = weight[:, 0::2], weight[:, 1::2]
    pair = torch.where(a * b > 0, (a + b).abs(), torch.maximum(a.abs(), b.abs())).amax(1, keepdim=True)
    scale = torch.maximum(weight.abs().amax(1, keepdim=True), pair) / 127
    return (weight / scale).round() * scale


def text_scale(x):
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = round(-low / scale)
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def token_scale(x):
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
    return (x / scale).round() * scale


def known_scale(reach):
    return lambda x: (x * (127 / reach)).round().clamp(-128, 127) * (reach / 127)


def divisors(largest):
    """`SmoothQuant` of export/src/quantise/smoothquant.rs: the scales, and whether one activation scale per tensor is enough."""
    median = largest.median()
    return (0.5 * (largest / median).log2()).round().exp2().clamp(0.25, 4.0), bool(largest.max() <= 12 * median)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=pathlib.Path, required=True)
    parser.add_argument("--bundle", type=pathlib.Path, required=True, help="of the same student: its prompt's tokens")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="data set in BEIR layout")
    args = parser.parse_args()
    torch.manual_seed(0)
    lines = lambda name: [json.loads(line)["text"] for line in (args.data / name).open(encoding="utf-8")]
    documents, queries = lines("corpus.jsonl"), lines("queries.jsonl")
    random.Random(1).shuffle(queries)
    texts = [(1, text) for text in documents[:20]] + [(0, text) for text in queries[:40]]
    others = [(1, text) for text in documents[60:]] + [(0, text) for text in queries[100:200]]
    student = Student(args)
    exact = student.run(texts)
    deviation = exact.std(0)
    neurons = {index: divisors(largest) for index, largest in student.largest(others).items()}

    def measure(what, weights=None, activations=None):
        student.rounded = {key: weights(key, w) for key, w in student.exact.items()} if weights else {}
        student.activation = {}
        for key in student.maps:
            activation = (activations or {}).get(key[1])
            if activation is not None:
                student.activation[key] = activation(key) if key[1] == "down_proj" else activation
        error = (((student.run(texts) - exact) / deviation) ** 2).mean().sqrt().item()
        print(f"| {what} | {error:.4f} |", flush=True)

    def divided(choose):
        def activation(key):
            divisor, even = neurons[key[0]]
            return lambda x: choose(even)(x / divisor) * divisor

        return activation

    def pairs(key, weight):
        divisor = neurons[key[0]][0] if key[1] == "down_proj" else 1.0
        return in_pairs(weight * divisor) / divisor

    text_or_token = divided(lambda even: text_scale if even else token_scale)
    normed = lambda activation: {name: activation for name in NORMED}
    plain = lambda activation: {"down_proj": lambda key: activation}
    print("| what is rounded | error |\n| --- | ---: |")
    measure("weights, 7 bits", lambda key, w: by_rows(w, 63))
    measure("weights, 8 bits by pairs", lambda key, w: in_pairs(w))
    measure("weights, 8 bits", lambda key, w: by_rows(w, 127))
    for reach in (3.5, 4.0, 4.5, 5.0):
        measure(f"behind norms, known scale, reach {reach}", activations=normed(known_scale(reach)))
    measure("behind norms, a scale for the text", activations=normed(text_scale))
    measure("behind norms, a scale for each token", activations=normed(token_scale))
    measure("before `o_proj`, a scale for the text", activations={"o_proj": text_scale})
    measure("before `o_proj`, a scale for each token", activations={"o_proj": token_scale})
    measure("before `down_proj`, a scale for the text", activations=plain(text_scale))
    measure("before `down_proj`, a scale for each token", activations=plain(token_scale))
    measure("the same, loud neurons divided, for the text", activations={"down_proj": divided(lambda even: text_scale)})
    measure("the same, divided, for each token", activations={"down_proj": divided(lambda even: token_scale)})
    measure("the same, divided, for each token where some neuron is very loud", activations={"down_proj": text_or_token})
    measure("all as without a calibration, before", lambda key, w: by_rows(w, 63), {**normed(text_scale), "o_proj": text_scale, **plain(token_scale)})
    measure("all as without a calibration", lambda key, w: in_pairs(w), {**normed(known_scale(4.0)), "o_proj": text_scale, **plain(token_scale)})
    measure("all as with one, but for GPTQ", pairs, {**normed(known_scale(4.0)), "o_proj": text_scale, "down_proj": text_or_token})


if __name__ == "__main__":
    main()
