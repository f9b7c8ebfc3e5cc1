"""The same work as `bench step`, by PyTorch's FSDP2 and transformers' Llama 4, to stand beside it on the same machine.

    torchrun --nproc-per-node 2 benches/peer_fsdp2.py --batch 4 --json peer.json

What is compared is how Scout is sharded and computed, so what makes the peer slowest is replaced: transformers computes all
experts for every token and holds all logits; here each token meets one expert, in PyTorch's grouped product, and logits live
for a chunk of tokens, with the gradient made beside the loss; norms are PyTorch's fused ones. Rotation and the order of
memory are transformers' own, gathers FSDP2's. Layers are computed again in the backward pass unless `--keep` says
otherwise. Weights are random, routing is balanced, and rows have one length, as there. Adapters and their optimizer are
in bf16, where ours are in f32.
"""

import argparse
import json
import os
import statistics
import sys
import time

# Memory of all layers and of a whole one gathered is nearly all there is: it must not lie in pieces.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
# Of each rank: its own number, times ranks, is more than a host has cores and memory for.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")

import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.llama4 import modeling_llama4 as llama4
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig

LORA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# The first is the faster on Hopper, where PyTorch finds it fit.
ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
TOKENS_OF_LOGITS = 4096


class Adapted(nn.Module):
    """A frozen product, and beside it one of low rank that is trained."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(2.0 * self.down(x))


class Reorder(torch.autograd.Function):
    """Rows in the order of a permutation, and their gradient in that of its inverse: without sorting or atomic sums."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.save_for_backward(order, inverse)
        return x[order]

    @staticmethod
    def backward(ctx, of_rows):
        order, inverse = ctx.saved_tensors
        return of_rows[inverse], None, None


def one_expert_a_token(moe, hidden):
    """In place of `Llama4TextMoe.forward`."""
    x = hidden.reshape(-1, moe.hidden_dim)
    logits = F.linear(x, moe.router.weight)
    expert = torch.arange(x.shape[0], device=x.device) % moe.num_experts
    score = torch.sigmoid(logits.gather(1, expert[:, None]).float()).to(x.dtype)
    order = torch.argsort(expert, stable=True)
    inverse = torch.argsort(order)
    ends = (expert[:, None] == torch.arange(moe.num_experts, device=x.device)).sum(0).cumsum(0).to(torch.int32)
    gate_up = F.grouped_mm(Reorder.apply(x * score, order, inverse), moe.experts.gate_up_proj, offs=ends)
    gate, up = gate_up.chunk(2, dim=-1)
    routed = F.grouped_mm(F.silu(gate) * up, moe.experts.down_proj, offs=ends)
    return moe.shared_expert(x) + Reorder.apply(routed, inverse, order), logits


def fused_norm(norm, x):
    """In place of the `forward` of both of transformers' norms."""
    return F.rms_norm(x, x.shape[-1:], getattr(norm, "weight", None), norm.eps)


class Loss(torch.autograd.Function):
    """Mean cross entropy, and its gradient, chunk by chunk. The head is frozen."""

    @staticmethod
    def forward(ctx, hidden, head, labels):
        total, gradient = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        for x, label, into in zip(*(of.split(TOKENS_OF_LOGITS) for of in (hidden, labels, gradient))):
            logits = F.linear(x, head).float()
            of_all = torch.logsumexp(logits, 1, keepdim=True)
            total += (of_all[:, 0] - logits.gather(1, label[:, None])[:, 0]).sum()
            share = logits.sub_(of_all).exp_()
            share.scatter_add_(1, label[:, None], share.new_full((len(label), 1), -1.0))
            torch.matmul(share.to(x.dtype), head, out=into)
        ctx.save_for_backward(gradient.div_(len(labels)))
        return total / len(labels)

    @staticmethod
    def backward(ctx, of_loss):
        return ctx.saved_tensors[0] * of_loss.to(ctx.saved_tensors[0].dtype), None, None


class Head(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, hidden, labels):
        return Loss.apply(hidden.flatten(0, 1), self.weight, labels.flatten())


class Scout(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.text = llama4.Llama4TextModel._from_config(config, attn_implementation="sdpa")
        self.head = Head(config)

    def forward(self, tokens, labels):
        masks = {"full_attention": None, "chunked_attention": None}  # rows are shorter than a chunk: plainly causal
        hidden = self.text(input_ids=tokens, attention_mask=masks, use_cache=False).last_hidden_state
        return self.head(hidden, labels)


def adapt(module, rank):
    for name, child in list(module.named_children()):
        if name in LORA and isinstance(child, nn.Linear):
            setattr(module, name, Adapted(child, rank))
        else:
            adapt(child, rank)


def build(options, device):
    config = Llama4TextConfig(num_hidden_layers=options.layers, **json.loads(options.shape))
    with torch.device("meta"):
        model = Scout(config).to(torch.bfloat16)
        model.requires_grad_(False)
        adapt(model.text, options.rank)
        model.to(torch.bfloat16)
    model.train()
    if not options.keep:
        model.text.gradient_checkpointing_enable({"use_reentrant": False})
    layers = list(model.text.layers)
    for layer in layers:
        if options.compile:
            layer.compile()
        fully_shard(layer)
    # The gradient of the head's input is made beside the loss: on the way back it is not needed again.
    fully_shard(model.head, reshard_after_forward=False)
    for unit in (model.text.embed_tokens, model):
        fully_shard(unit)
    if options.ahead:
        for index, layer in enumerate(layers):
            layer.set_modules_to_forward_prefetch(layers[index + 1 : index + 1 + options.ahead])
    model.to_empty(device=device)
    for parameter in model.parameters():
        part = parameter.to_local().data
        part.normal_(0, 0.02) if parameter.dim() > 1 else part.fill_(1)
    model.text.rotary_emb = llama4.Llama4TextRotaryEmbedding(config).to(device)
    return model, config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--batch", type=int, required=True, help="rows of each rank in a step")
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=8, help="of LoRA")
    parser.add_argument("--keep", action="store_true", help="keep what the backward pass needs, in place of computing again")
    parser.add_argument("--compile", action="store_true", help="compile each layer")
    parser.add_argument("--ahead", type=int, default=0, help="layers that forward gathers ahead; as FSDP2 itself does if 0")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--shape", default="{}", help="JSON of other numbers than Scout's, for a trial run")
    parser.add_argument("--json")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    torch.manual_seed(7 + dist.get_rank())
    llama4.Llama4TextMoe.forward = one_expert_a_token
    llama4.Llama4TextRMSNorm.forward = llama4.Llama4TextL2Norm.forward = fused_norm
    model, config = build(options, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=on_gpu)
    tokens = torch.randint(0, config.vocab_size, (options.batch, options.seq + 1), device=device)

    def step():
        begun = time.perf_counter()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - begun, loss

    with sdpa_kernel(ATTENTION, set_priority=True):
        losses = [step()[1] for _ in range(options.warm_up)]
        dist.barrier()
        timed = [step() for _ in range(options.steps)]
    seconds = [of_step for of_step, _ in timed]
    step_s = statistics.median(seconds)
    found = {
        "peer": "FSDP2", "torch": torch.__version__, "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "world": dist.get_world_size(),
        "layers": options.layers, "batch": options.batch, "seq": options.seq, "lora_rank": options.rank,
        "keep": options.keep, "compile": options.compile, "ahead": options.ahead,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad),
        "trained": sum(parameter.numel() for parameter in trained),
        "step_s": step_s, "step_s_spread": [min(seconds), step_s, max(seconds)],
        "steps": options.steps, "tok_s_gpu": options.batch * options.seq / step_s,
        "memory_reserved_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
        # Each retry empties the allocator's pool and waits for the GPU.
        "allocation_retries": torch.cuda.memory_stats()["num_alloc_retries"] if on_gpu else None,
        "command": " ".join(sys.argv),
        "losses": losses + [loss for _, loss in timed],
    }
    if dist.get_rank() == 0:
        of_losses = f"loss {losses[0]:.3f} to {timed[-1][1]:.3f}"
        print(f"{step_s * 1e3:.1f} ms a step, {found['tok_s_gpu']:,.0f} tokens/s a GPU, {of_losses}")
        if options.json:
            with open(options.json, "w") as file:
                json.dump(found, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
