"saebook through its public interface. opt: fp32 (never screen in low precision), aux (AuxK with weight 1/32, as sparsify's adapter has it)."
import torch

from saebook.sae import SAE
from saebook.train import TrainConfig, Trainer


class A:
    def __init__(self, cfg, x0):
        self.exact, act = 'fp32' in cfg['opt'].split(','), dict(batchtopk='batch_topk').get(cfg['act'], cfg['act'])
        self.sae = SAE(cfg['d_in'], cfg['n_lat'], act, cfg['k'], seed=1)
        with torch.no_grad():
            self.sae.W_enc.mul_(3**-.5) # the length of the rows that the peers start from
            self.sae.b_dec.copy_(x0.mean(0))
        scale = (x0 - x0.mean(0)).square().mean().sqrt().item()
        self.t = Trainer(self.sae, TrainConfig(lr=cfg['lr'], dead_after=cfg.get('dead_after', 10_000_000), exact=self.exact), x0.mean(0), (scale, scale))
        self.scale = scale

    def step(self, x): self.t.step(x, None, 1.)
    def encode(self, x): self.sae.eval(); return self.sae.encode(x/self.scale, exact=self.exact)
    def decode(self, c): return self.sae.decode(c)*self.scale
    def reconstruct(self, x): return self.decode(self.encode(x))
    def fired(self, x):
        c = self.encode(x)
        return torch.zeros(c.n, dtype=torch.bool).index_fill_(0, c.indices[c.values > 0], True), c.l0().float().mean()


def make(cfg, x0): return A(cfg, x0)
