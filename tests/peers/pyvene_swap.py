"""Runs in pyvene's own environment, without saebook: python pyvene_swap.py OUT. Writes a small GPT2 of random weights, and what pyvene's low-rank rotation makes of pairs of
activations (h, s, W -> expected) and of the model's answers (ids, at -> logits), each row with its own position, base and source at different ones."""
import os, sys
from pathlib import Path
os.environ['HF_HUB_OFFLINE'] = '1'

import pyvene as pv, torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

D, K, LAYER = 16, 3, 0
out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=D, n_layer=2, n_head=2, n_positions=12, bos_token_id=None, eos_token_id=None)).eval()
for p in model.parameters():
    if p.ndim > 1: torch.nn.init.normal_(p, std=.3) # large enough for every part to matter
model.save_pretrained(out/'model')

g = torch.Generator().manual_seed(1)
h, s = torch.randn(2, 8, D, generator=g).unbind()
ids, at = torch.randint(24, (2, 4, 7), generator=g), torch.tensor([[1, 4, 0, 6], [3, 3, 5, 0]]) # base, source
with torch.no_grad():
    swap = pv.LowRankRotatedSpaceIntervention(embed_dim=D, low_rank_dimension=K)
    expected = swap(h, s)
    iv = pv.IntervenableModel(pv.IntervenableConfig([dict(layer=LAYER, component='block_output', low_rank_dimension=K, intervention_type=pv.LowRankRotatedSpaceIntervention)]), model)
    (inside,) = iv.interventions.values()
    inside.load_state_dict(swap.state_dict(), strict=False)
    W = inside.rotate_layer.weight
    assert torch.equal(W, swap.rotate_layer.weight)
    place = lambda a: [[[p] for p in a.tolist()]]
    logits = iv(dict(input_ids=ids[0]), [dict(input_ids=ids[1])], {'sources->base': (place(at[1]), place(at[0]))})[1].logits
    assert (logits - model(ids[0]).logits).abs().max() > .1 # something was changed
save_file({k: v.detach().clone().contiguous() for k, v in dict(h=h, s=s, W=W, expected=expected, ids=ids, at=at, logits=logits).items()}, out/'swap.safetensors')
