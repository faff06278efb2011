"""Tiny seeded decoders of every supported family, and what Hugging Face transformers computes with them.

    python -m venv venv && venv/bin/pip install torch==2.13.0 transformers==5.23.0
    venv/bin/python tests/golden/make_decoder.py

Run with torch 2.13.0 (CPU), transformers 5.23.0, safetensors 0.8.0, Python 3.11. Writes tests/golden/decoder/NAME/
config.json, model.safetensors and golden.safetensors:

    input_ids, attention_mask   [3, seq] int64, rows of 24, 11 and 3 tokens, padded on the right
    hidden.N                    [3, seq, hidden_size] after N layers (0: embeddings), the last one before the final norm
    last, logits                [3, seq, ..] after the final norm, and after the head
    generated                   [8] greedy continuation of the first 5 tokens of row 0

Weights are rounded to the dtype they are stored in before anything is computed (in f32, on CPU, eager attention).
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, AutoModelForCausalLM

HERE = Path(__file__).parent / "decoder"
LENGTHS = [24, 11, 3]
SIZES = dict(
    vocab_size=80, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)

FAMILIES = {
    # SmolLM2's shape: tied head, three query heads to one key head.
    "llama": (LlamaConfig(**SIZES, tie_word_embeddings=True, rope_theta=100000.0), torch.bfloat16),
    # Llama 3.1's: own head, frequencies stretched; the short original length reaches all three branches.
    "llama3": (
        LlamaConfig(
            **SIZES | dict(num_hidden_layers=2, eos_token_id=[2, 3]), tie_word_embeddings=False,
            rope_parameters=dict(
                rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                high_freq_factor=4.0, original_max_position_embeddings=16,
            ),
        ),
        torch.bfloat16,
    ),
    # Every bias a Llama can have, linear stretching.
    "llama_biases": (
        LlamaConfig(
            **SIZES | dict(num_hidden_layers=2), tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
            rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
        ),
        torch.float16,
    ),
    "mistral": (
        MistralConfig(**SIZES | dict(num_hidden_layers=2), tie_word_embeddings=False, sliding_window=32),
        torch.bfloat16,
    ),
    # Biases on queries, keys and values, one key head for all.
    "qwen2": (
        Qwen2Config(
            **SIZES | dict(num_hidden_layers=2, num_key_value_heads=1), tie_word_embeddings=True,
            rope_theta=1000000.0,
        ),
        torch.float32,
    ),
    # Norms on queries and keys, heads wider than hidden_size / heads.
    "qwen3": (
        Qwen3Config(
            **SIZES | dict(num_attention_heads=4, head_dim=16), tie_word_embeddings=True, rope_theta=1000000.0,
        ),
        torch.bfloat16,
    ),
}


@torch.no_grad()
def make(name, config, dtype):
    torch.manual_seed(20240 + len(name))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    for key, parameter in model.named_parameters():
        # Far from the usual start: norms that are not 1 and biases that are not 0 show a forgotten one.
        if parameter.ndim == 2:
            parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5)
        elif key.endswith("bias"):
            parameter.normal_(0.0, 0.3)
        else:
            parameter.uniform_(0.6, 1.4)
        parameter.copy_(parameter.to(dtype).float())

    seq = max(LENGTHS)
    input_ids = torch.randint(3, config.vocab_size, (len(LENGTHS), seq))
    mask = (torch.arange(seq) < torch.tensor(LENGTHS)[:, None]).long()
    input_ids = input_ids * mask
    before_norm = []
    hook = model.model.norm.register_forward_hook(lambda module, args, output: before_norm.append(args[0]))
    out = model.model(input_ids, attention_mask=mask, output_hidden_states=True)
    hook.remove()
    hidden = list(out.hidden_states)
    hidden[-1] = before_norm[0]
    assert len(hidden) == config.num_hidden_layers + 1

    ids = input_ids[:1, :5]
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)

    golden = {"input_ids": input_ids, "attention_mask": mask, "generated": ids[0, 5:].clone()}
    golden |= {f"hidden.{n}": state.contiguous() for n, state in enumerate(hidden)}
    golden |= {"last": out.last_hidden_state, "logits": model.lm_head(out.last_hidden_state)}
    folder = HERE / name
    model.to(dtype).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(golden, folder / "golden.safetensors")
    print(name, sum(p.numel() for p in model.parameters()), "parameters", out.last_hidden_state.std().item())


for name, (config, dtype) in FAMILIES.items():
    make(name, config, dtype)
