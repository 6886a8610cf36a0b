"""Evaluate one autoencoder in several processes, on several GPUs or machines: each takes some of the sequences.

    torchrun --nproc-per-node 4 training/evaluate_in_parts.py --model tiny --sae topk-2 --out report.csv

What the processes sum up adds to the sums of one process, so that the report is the same, to rounding. To evaluate a
model or an autoencoder of your own, change `main`. With --folder a run that was stopped continues.
"""

from __future__ import annotations

import argparse
import os
from functools import reduce
from operator import add
from pathlib import Path

import torch
import torch.distributed as dist

from course_utils.faithfulness import Evaluation
from course_utils.faithfulness_report import FaithfulnessReport, Sums
from course_utils.models import load_model
from course_utils.passes import Keeper
from course_utils.sae_files import load_shipped_sae
from course_utils.text import sample_text


def evaluate_in_parts(evaluation: Evaluation, folder: Path | None = None) -> FaithfulnessReport:
    """`evaluate_sae` in every process of the group; `evaluation` has all sequences in each."""
    rank, parts = dist.get_rank(), dist.get_world_size()
    rows = torch.arange(len(evaluation.tokens))[rank::parts]
    keep = Keeper(folder / f"part {rank} of {parts}", evaluation.settings()) if folder else None
    total = of_all(evaluation.sums(rows, keep))
    if evaluation.everything:                                       # its mean activation is that of all sequences
        total = total + of_all(evaluation.mean_ablation(total.mean_activation, rows, keep))
    return total.report()


def of_all(part: Sums) -> Sums:
    """The sums of all processes together."""
    parts = [part] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return reduce(add, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--sae", default="topk-2", help="one that the course ships for the model")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens in each")
    parser.add_argument("--folder", type=Path, help="where to keep the sums, about once a minute")
    parser.add_argument("--out", type=Path, help="where to write the report, as CSV")
    args = parser.parse_args()
    dist.init_process_group("gloo")                                 # sums are on the CPU, whatever the model is on
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    model = load_model(args.model)
    sae = load_shipped_sae(args.model, args.sae).to(model.cfg.device)
    report = evaluate_in_parts(Evaluation(model, sae, sample_text(model, args.sequences, args.length)), args.folder)
    if dist.get_rank() == 0:
        table = report.to_frame()
        print(table.to_string())
        if args.out:
            table.to_csv(args.out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
