"""python -m unittest discover python/tests; GRADPRUNER names a built program, for the tests that score a record."""

import hashlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest

import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import tiny
from gradpruner import GradientRecorder, RecordError, Recorder
from gradpruner.names import Matrix

PROGRAM = os.environ.get("GRADPRUNER") and os.path.abspath(os.environ["GRADPRUNER"])


def steps_of(record):
    """The gradients of each step, in order, whose digests are those of the manifest."""
    manifest = json.loads((record / "manifest.json").read_text())
    found = []
    for entry in manifest["steps"]:
        path = record / entry["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
        found.append(load_file(path))
    return manifest, found


def by_hand(model, steps, batch):
    """Gradients of the first steps, a plain loop."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    rows, found, losses = tiny.Rows(), [], []
    for step in range(steps):
        part = [rows[step * batch + at] for at in range(batch)]
        loss = model(**{key: torch.stack([row[key] for row in part]) for key in part[0]}).loss
        loss.backward()
        losses.append(loss.item())
        found.append({Matrix.parse(name).stored: parameter.grad.clone()
                      for name, parameter in model.named_parameters() if parameter.requires_grad})
        optimizer.step()
        optimizer.zero_grad()
    return found, losses


class Records(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._folder.name)
        self.addCleanup(self._folder.cleanup)

    def assert_close(self, found, expected, tolerance=1e-5):
        self.assertEqual(len(found), len(expected))
        for one, other in zip(found, expected):
            self.assertEqual(set(one), set(other))
            for name, gradient in one.items():
                apart = (gradient - other[name]).abs().max() / other[name].abs().max()
                self.assertLess(apart.item(), tolerance, name)

    def with_accumulation(self, kind):
        """Trains by a kind of trainer, two rows twice a step; what is recorded is what a loop by hand finds."""
        callback = GradientRecorder(self.folder / "record", steps=3)
        made = kind(tiny.model(), self.folder / "out", 2, 2, [callback], weight_decay=0.0, max_grad_norm=0.0)
        made.train()
        self.assertEqual(made.state.global_step, 5)
        manifest, found = steps_of(self.folder / "record")
        expected, losses = by_hand(tiny.model(), 3, 4)
        self.assert_close(found, expected)
        self.assertEqual((manifest["num_layers"], manifest["lora"]["rank"], manifest["lora"]["alpha"]), (6, 4, 8.0))
        for entry, loss in zip(manifest["steps"], losses):
            self.assertAlmostEqual(entry["loss"], loss, places=4)
            self.assertEqual((entry["tokens"], entry["learning_rate"]), (48, 1e-3))

    def test_trainer_with_accumulation(self):
        self.with_accumulation(tiny.trainer)

    @unittest.skipUnless(importlib.util.find_spec("trl"), "TRL is not installed")
    def test_sft_trainer_with_accumulation(self):
        self.with_accumulation(tiny.sft_trainer)

    def test_stops_and_leaves_nothing_half_written(self):
        callback = GradientRecorder(self.folder / "record", steps=2, stop=True)
        made = tiny.trainer(tiny.model(), self.folder / "out", 4, 1, [callback])
        made.train()
        self.assertEqual(made.state.global_step, 2)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["out", "record"])
        # Clipped to a norm of 1, as the optimizer sees them.
        _, found = steps_of(self.folder / "record")
        norm = sum(gradient.square().sum() for gradient in found[0].values()).sqrt()
        self.assertLessEqual(norm.item(), 1.0 + 1e-4)

    def test_hidden_states_are_those_of_a_plain_pass(self):
        model = tiny.model()
        recorder = Recorder(model, self.folder / "record", steps=1)
        rows = tiny.Rows()
        batch = {key: torch.stack([rows[at][key] for at in range(4)]) for key in rows[0]}
        batch["attention_mask"][1, 8:] = 0
        batch["labels"][1, 8:] = -100
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
        model(**batch).loss.backward()
        self.assertTrue(recorder.step(loss=1.0, learning_rate=0.5))
        mask = batch["attention_mask"].bool()
        activations = json.loads((self.folder / "record/activations.json").read_text())
        hidden = json.loads((self.folder / "record/hidden.json").read_text())
        self.assertEqual((activations["tokens"], hidden["rows"], hidden["tokens"]), (44, 4, 44))
        # transformers normalises the last of the states it hands out.
        flat = [state[mask].double() for state in states[:-1]]
        for layer, (before, after) in enumerate(zip(flat, flat[1:])):
            alike = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean().item()
            self.assertAlmostEqual(activations["block_influence"][layer], 1 - alike, places=5)
            self.assertAlmostEqual(hidden["cosines"][layer][layer + 1], alike, places=5)
            step = ((after - before).norm(dim=-1) / before.norm(dim=-1)).mean().item()
            self.assertAlmostEqual(hidden["relative_step"][layer], step, places=5)
        ends = [11, 7, 11, 11]
        last = [torch.stack([state[row, end] for row, end in enumerate(ends)]).double() for state in states[:-1]]
        last = [state - state.mean(0) for state in last]
        for layer, (x, y) in enumerate(zip(last, last[1:])):
            expected = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
            self.assertAlmostEqual(hidden["cka"][layer], expected.item(), places=5)

    def test_a_layer_that_tells_rows_apart_is_not_alike(self):
        model = tiny.model()
        recorder = Recorder(model, self.folder / "record", steps=1)
        ids = torch.tensor([[3, 9, 7], [4, 30, 7], [5, 8, 7]])
        model(input_ids=ids, labels=ids).loss.backward()
        self.assertTrue(recorder.step(loss=1.0, learning_rate=0.5))
        alike = json.loads((self.folder / "record/hidden.json").read_text())["cka"]
        self.assertEqual(alike[0], 0.0)
        self.assertGreater(alike[1], 0.0)

    def test_a_training_without_steps_ends_without_a_record(self):
        model = tiny.model()
        callback = GradientRecorder(self.folder / "record", steps=2)
        trainer = tiny.trainer(model, self.folder / "out", 4, 1, [callback])
        told = trainer.args, trainer.state, trainer.control
        callback.on_train_begin(*told, model=model, optimizer=None)
        with self.assertLogs("gradpruner", "WARNING") as said:
            callback.on_train_end(*told)
        self.assertIn("before a step was recorded", said.output[0])
        self.assertEqual([path for path in self.folder.iterdir() if "record" in path.name], [])

    def test_layers_computed_again_are_seen_once(self):
        callback = GradientRecorder(self.folder / "record", steps=2, stop=True)
        tiny.trainer(tiny.model(), self.folder / "out", 4, 1, [callback], gradient_checkpointing=True).train()
        hidden = json.loads((self.folder / "record/hidden.json").read_text())
        activations = json.loads((self.folder / "record/activations.json").read_text())
        self.assertEqual((hidden["rows"], hidden["tokens"], activations["tokens"]), (8, 96, 48))

    def test_a_loss_scale_is_taken_out(self):
        rows = tiny.Rows()
        batch = {key: rows[0][key].unsqueeze(0) for key in rows[0]}
        expected, _ = by_hand(tiny.model(), 1, 1)
        model = tiny.model()
        inner = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(model(**batch).loss).backward()
        # As accelerate wraps an optimizer.
        wrapped = types.SimpleNamespace(scaler=scaler, optimizer=inner, param_groups=inner.param_groups)
        Recorder(model, self.folder / "again", steps=1).step(optimizer=wrapped, loss=1.0)
        _, found = steps_of(self.folder / "again")
        self.assert_close(found, expected)

    def test_a_step_that_overflows_is_passed_over(self):
        model = tiny.model()
        recorder = Recorder(model, self.folder / "record", steps=1)
        rows = tiny.Rows()
        batch = {key: rows[0][key].unsqueeze(0) for key in rows[0]}
        model(**batch).loss.backward()
        next(p for p in model.parameters() if p.requires_grad).grad[0, 0] = float("inf")
        self.assertFalse(recorder.step(learning_rate=0.5))
        model.zero_grad()
        model(**batch).loss.backward()
        self.assertTrue(recorder.step(learning_rate=0.5))

    def test_a_matrix_that_no_row_reaches(self):
        model = tiny.model()
        recorder = Recorder(model, self.folder / "record", steps=1)
        rows = tiny.Rows()
        model(**{key: rows[0][key].unsqueeze(0) for key in rows[0]}).loss.backward()
        # The first gradient of every A is zero, as its B is.
        unreached = next(p for name, p in model.named_parameters() if "lora_B" in name)
        unreached.grad = None
        self.assertTrue(recorder.step(learning_rate=0.5))
        recorded = load_file(self.folder / "record" / "step-00001.safetensors")
        self.assertEqual(len(recorded), sum(p.requires_grad for p in model.parameters()))
        zeros = [g.shape for name, g in recorded.items() if "lora_B" in name and g.count_nonzero() == 0]
        self.assertEqual(zeros, [unreached.shape])

    def test_what_cannot_be_recorded(self):
        model = tiny.model()
        with self.assertRaisesRegex(RecordError, "no LoRA matrices"):
            Recorder(model.base_model.model.model.embed_tokens, self.folder / "record")
        recorder = Recorder(model, self.folder / "record", steps=1)
        with self.assertRaisesRegex(RecordError, "no LoRA matrix has a gradient; call step"):
            recorder.step()
        recorder.abandon()
        self.assertEqual(list(self.folder.iterdir()), [])
        (self.folder / "record").mkdir()
        with self.assertRaisesRegex(RecordError, "exists already"):
            Recorder(model, self.folder / "record")

    def test_names(self):
        name = "module.base_model.model.model.layers.3._orig_mod.mlp.experts.7.w1.lora_A.default.weight"
        matrix = Matrix.parse(name)
        self.assertEqual(matrix.stored, "layers.3.mlp.experts.7.w1.lora_A")
        self.assertEqual(Matrix.parse("base_model.model.transformer.h.2.attn.c_attn.lora_B.default.weight").stored,
                         "layers.2.attn.c_attn.lora_B")
        for other in ["base_model.model.visual.blocks.0.attn.qkv.lora_A.default.weight", "lm_head.weight",
                      "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector.default.weight"]:
            self.assertIsNone(Matrix.parse(other))

    def torchrun(self, kind, folder):
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517",
                   str(HERE / "worker.py"), kind, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        return done.stdout

    def spread(self, kind):
        folder = self.folder / kind
        folder.mkdir()
        self.torchrun(kind, folder)
        manifest, found = steps_of(folder / "record")
        expected, losses = by_hand(tiny.model(), 3, 4)
        # Adam makes much of the last bit after the first step.
        self.assert_close(found, expected, 1e-4)
        for entry, loss in zip(manifest["steps"], losses):
            self.assertAlmostEqual(entry["loss"], loss, places=4)
        if PROGRAM:
            single = Recorder(tiny.model(), self.folder / f"{kind}-single", steps=3)
            self.replay(single, 3)
            self.assert_equal_scores(folder / "record", self.folder / f"{kind}-single")

    @unittest.skipUnless(PROGRAM, "no program is named")
    def test_a_pruned_model_is_trained_on_by_two_processes(self):
        self.torchrun("ddp", self.folder)
        tiny.model().unload().save_pretrained(self.folder / "model")
        for arguments in [
            ["plan", "record", "--prune", "2", "--merge", "1", "--repair", "same-sign", "--out", "plan.json"],
            ["prune", "--model", "model", "--plan", "plan.json", "--record", "record", "--out", "pruned"],
        ]:
            done = subprocess.run([PROGRAM, *arguments], cwd=self.folder, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("loss", self.torchrun("tune", self.folder))

    def replay(self, recorder, steps):
        model = recorder._model
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        rows = tiny.Rows()
        for step in range(steps):
            part = [rows[step * 4 + at] for at in range(4)]
            model(**{key: torch.stack([row[key] for row in part]) for key in part[0]}).loss.backward()
            recorder.step(optimizer=optimizer)
            optimizer.step()
            optimizer.zero_grad()

    def assert_equal_scores(self, one, other):
        def scores(record):
            done = subprocess.run([PROGRAM, "score", str(record), "--verify", "--json"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            return [layer["score"] for layer in json.loads(done.stdout)["layers"]]

        for found, expected in zip(scores(one), scores(other), strict=True):
            self.assertLess(abs(found / expected - 1), 1e-5)

    def test_two_processes_by_ddp(self):
        self.spread("ddp")

    def test_two_processes_by_fsdp1(self):
        self.spread("fsdp1")

    def test_two_processes_by_fsdp2(self):
        self.spread("fsdp2")

    @unittest.skipUnless(importlib.util.find_spec("deepspeed"), "DeepSpeed is not installed")
    def test_two_processes_by_zero_2(self):
        self.spread("zero2")

    @unittest.skipUnless(importlib.util.find_spec("deepspeed"), "DeepSpeed is not installed")
    def test_two_processes_by_zero_3(self):
        self.spread("zero3")


if __name__ == "__main__":
    unittest.main()
