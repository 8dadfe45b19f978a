"""How alike the hidden states before and after each layer are, gathered as forward passes go by.

What `activations.json` and `hidden.json` of a record hold; the definitions are those of docs/method.md, section 3. Of several
processes each sees its own rows, and the first one's are written.
"""

import torch

# Rows that are looked at.
ROWS = 160
# Bytes of one pass's states that are held, all layers' together; of a pass with more every so many-th token is looked at.
HELD_BYTES = 128 << 20
_TINY = 1e-30


class HiddenMeter:
    """Hooks on a decoder's layers and on the model around them."""

    def __init__(self, model, layers):
        self.num_layers = len(layers)
        self.rows = self.tokens = 0
        self.influence_tokens = 0
        self.influence = [0.0] * self.num_layers
        self.sums = None  # Of cosines over tokens, and over last tokens.
        self.relative_step = [0.0] * self.num_layers
        self.last = [[] for _ in range(self.num_layers + 1)]
        self.is_first_step = True
        self._mask = None
        self._inside = False
        self._states = []
        self._hooks = [model.register_forward_pre_hook(self._begin, with_kwargs=True),
                       model.register_forward_hook(self._end)]
        for layer in layers:
            self._hooks.append(layer.register_forward_hook(self._layer, with_kwargs=True))

    def remove(self):
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _begin(self, _model, _arguments, keywords):
        # What is computed again for the backward pass comes outside of the model's forward pass, and is not seen twice; nor is
        # an evaluation meanwhile.
        wanted = self.is_first_step or self.rows < ROWS
        self._inside = wanted and torch.is_grad_enabled()
        self._mask = keywords.get("attention_mask")
        self._states = []

    def _layer(self, _layer, arguments, keywords, output):
        if not self._inside:
            return
        if not self._states:
            self._states.append((arguments[0] if arguments else keywords["hidden_states"]).detach())
        self._states.append((output[0] if isinstance(output, tuple) else output).detach())

    def _end(self, _model, _arguments, _output):
        states, self._states = self._states, []
        if self._inside and len(states) == self.num_layers + 1:
            with torch.no_grad():
                self._see(states)
        self._inside = False

    def _see(self, states):
        batch, length, width = states[0].shape
        mask = self._mask
        usable = mask is not None and mask.dim() == 2 and tuple(mask.shape) == (batch, length)
        mask = mask.to(torch.bool) if usable else torch.ones(batch, length, dtype=torch.bool, device=states[0].device)
        mask = mask.to(states[0].device)
        if self.is_first_step:
            for layer, (before, after) in enumerate(zip(states, states[1:])):
                alike = torch.nn.functional.cosine_similarity(before[mask].float(), after[mask].float(), dim=-1, eps=1e-8)
                self.influence[layer] += alike.double().sum().item()
            self.influence_tokens += int(mask.sum())
        if self.rows >= ROWS:
            return
        at = mask.flatten().nonzero().squeeze(-1)
        size = len(states) * len(at) * width * 4
        at = at[:: max(1, -(-size // HELD_BYTES))]
        positions = torch.arange(length, device=mask.device)
        ends = torch.where(mask, positions, -1).max(dim=1).values
        ends = (torch.arange(batch, device=mask.device) * length + ends)[ends >= 0]
        flat = [state.reshape(-1, width) for state in states]
        seen = torch.stack([state[at].float() for state in flat], 1)
        last = torch.stack([state[ends].float() for state in flat], 1)
        norms = seen.norm(dim=-1).clamp_min(_TINY)
        steps = (seen[:, 1:] - seen[:, :-1]).norm(dim=-1) / norms[:, :-1]
        self.relative_step = [total + more for total, more in zip(self.relative_step, steps.double().sum(0).tolist())]
        found = torch.stack([_cosines(seen), _cosines(last)]).cpu()
        self.sums = found if self.sums is None else self.sums + found
        for kept, state in zip(self.last, last.cpu().unbind(1)):
            kept.append(state)
        self.tokens += len(at)
        self.rows += len(ends)

    def activations(self):
        """What `activations.json` holds."""
        tokens = max(1, self.influence_tokens)
        influence = [1.0 - total / tokens for total in self.influence]
        return {"format": "gradpruner-activations", "version": 1, "tokens": self.influence_tokens,
                "block_influence": influence}

    def hidden(self):
        """What `hidden.json` holds; None if no pass was seen."""
        if self.sums is None:
            return None
        states = [torch.cat(kept).double() for kept in self.last]
        states = [_centred(state) for state in states]
        alike = [_cka(before, after) for before, after in zip(states, states[1:])]
        means = (self.sums[0] / self.tokens).tolist(), (self.sums[1] / self.rows).tolist()
        return {"format": "gradpruner-hidden", "version": 1, "rows": self.rows, "tokens": self.tokens,
                "cosines": means[0], "last_cosines": means[1], "cka": alike,
                "relative_step": [total / self.tokens for total in self.relative_step]}


def _cosines(states):
    """Sums over tokens of the cosine of every two layers' states, of `[tokens, layers, width]`."""
    units = states / states.norm(dim=-1, keepdim=True).clamp_min(_TINY)
    return (units @ units.transpose(1, 2)).double().sum(0)


def _centred(state):
    """A matrix without its rows' mean; what rounding leaves of rows that are all alike is nothing."""
    centred = state - state.mean(0)
    return centred if centred.norm() > 1e-12 * state.norm() else torch.zeros_like(state)


def _cka(x, y):
    """Linear CKA of two centred matrices of as many rows, by their Gram matrices.

    Rows that all end in the same token have one embedding, of which nothing is left after centring: what tells them apart then
    is not like it, and of one row both are alike.
    """
    x, y = x @ x.T, y @ y.T
    if x.norm() > 0 and y.norm() > 0:
        return ((x * y).sum() / (x.norm() * y.norm())).item()
    return float((x.norm() > 0) == (y.norm() > 0))
