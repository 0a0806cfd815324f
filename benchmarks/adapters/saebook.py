"saebook through its public interface. opt: fp32 (never screen in low precision). AuxK has the weight 1/32, as in sparsify's adapter."
import torch

from saebook.sae import SAE
from saebook.train import TrainConfig, Trainer


class A:
    def __init__(self, cfg, x0):
        self.exact, act = 'fp32' in cfg['opt'].split(','), dict(batchtopk='batch_topk').get(cfg['act'], cfg['act'])
        self.sae = SAE(cfg['d_in'], cfg['n_lat'], act, cfg['k'], seed=cfg.get('seed', 1))
        with torch.no_grad():
            self.sae.W_enc.mul_(3**-.5) # the length of the rows that the peers start from
            self.sae.b_dec.copy_(x0.mean(0))
        scale = (x0 - x0.mean(0)).square().mean().sqrt().item()
        self.t = Trainer(self.sae, TrainConfig(lr=cfg['lr'], dead_after=cfg.get('dead_after', 10_000_000), exact=self.exact), x0.mean(0), (scale, scale))
        self.scale = scale
        if n := round(cfg.get('dead', 0)*cfg['n_lat']): # dead from the start, as in sparsify's adapter
            with torch.no_grad(): self.sae.W_enc[:, -n:] *= .1
            self.t.since[-n:] = 1 << 40

    def step(self, x): self.row = self.t.step(x, None, 1.)
    def aux(self): return float(self.row['loss'] - self.row['fvu'])/self.t.cfg.aux, float((self.t.since > self.t.cfg.dead_after).float().mean())
    def encode(self, x): self.sae.eval(); return self.sae.encode(x/self.scale, exact=self.exact)
    def decode(self, c): return self.sae.decode(c)*self.scale
    def reconstruct(self, x): return self.decode(self.encode(x))
    def fired(self, x):
        c = self.encode(x)
        return torch.zeros(c.n, dtype=torch.bool).index_fill_(0, c.indices[c.values > 0], True), c.l0().float().mean()


def make(cfg, x0): return A(cfg, x0)
