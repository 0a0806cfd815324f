"""Makes the fixtures anew: python tests/peers/make.py [OUT], with the peers' environments of benchmarks/peers.sh. Small SAEs that the peers' own packages wrote,
and what they compute for tokens of the world (real activations of a taught model) and for noise."""
import os, shutil, subprocess, sys
from pathlib import Path

import torch
from safetensors.torch import save_file

here = Path(__file__).parent
venvs = Path(os.environ.get('PEER_VENVS') or Path.home()/'.cache'/'saebook-peers')
PEERS = dict(sparsify='sparsify', saelens='saelens', dictionary_learning='dl') # name in peer.py -> environment

def peer(name, what, x, folder):
    "Run peer.py in the environment of a peer."
    env = dict(os.environ, HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
    r = subprocess.run([venvs/PEERS[name]/'bin'/'python', here/'peer.py', what, name, str(x), str(folder)], env=env, capture_output=True, text=True)
    if r.returncode: raise RuntimeError(f'{name}: {r.stderr[-2000:]}')

def have(name): return (venvs/PEERS[name]/'bin'/'python').exists()

def activations(rows=8):
    "Half of the rows from the world's base model, half noise of the same spread: [2 rows, d]."
    from saebook import cache, world
    model, tok = world.load_taught('base')
    ctx = cache.contexts(tok, world.World(0).documents(40, 'test').text, 128)
    acts = cache.activations(model, ctx, world.load_planted().site, progress=False)
    real = acts[torch.linspace(0, len(acts) - 1, rows).long()].float()
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))*acts.std(0) + acts.mean(0)
    return torch.cat([real, noise])

if __name__ == '__main__':
    out = Path(sys.argv[1] if len(sys.argv) > 1 else here/'fixtures')
    if out.exists(): shutil.rmtree(out)
    out.mkdir(parents=True)
    save_file(dict(x=activations()), out/'x.safetensors')
    for name in PEERS: peer(name, 'write', out/'x.safetensors', out/name)
    subprocess.run([venvs/'pyvene'/'bin'/'python', here/'pyvene_swap.py', str(out/'pyvene')], check=True)
