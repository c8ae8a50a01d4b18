"""Explain handwritten digits as a data set, beside one at a time: `python benchmarks/dataset.py --count 200`.

Both give the same numbers; the largest difference of λ and α stands beside the times.
"""

from __future__ import annotations

import argparse
import time

import torch

import specxai
from specxai.zoo import load_digits_net
from specxai.zoo.digits import digits_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="digits together; of 1,797")
    parser.add_argument("--alone", type=int, default=40, help="of these one at a time")
    parser.add_argument("--layers", nargs="+", default=["classifier.1", "features.18"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="of the data set; one at a time is on the CPU")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    net, parts = load_digits_net(), digits_data()
    x = torch.cat([part.x for part in parts])[:asked.count]
    for layer in asked.layers:
        specxai.explain(net, x[:1], layer)
        start = time.perf_counter()
        alone = [specxai.explain(net, one[None], layer) for one in x[:asked.alone]]
        one = (time.perf_counter() - start) / len(alone)
        there, images = net.to(asked.device), x.to(asked.device)
        list(specxai.explain_many(there, images[:2], layer))
        start = time.perf_counter()
        many = list(specxai.explain_many(there, images, layer))
        each = (time.perf_counter() - start) / len(many)
        net = net.to("cpu")
        gap = max(float((a.S - b.S).abs().max() / a.S[0]) for a, b in zip(alone, many, strict=False))
        off = max(float((a.alpha - b.alpha).abs().max() / a.alpha.abs().max())
                  for a, b in zip(alone, many, strict=False))
        print(f"{layer:14} one at a time {1e3 * one:7.2f} ms, of {len(many)} together {1e3 * each:7.2f} ms on "
              f"{asked.device}: {one / each:5.1f} x; λ differ by {gap:.1e} λ₁, α by {off:.1e} of the largest")


if __name__ == "__main__":
    main()
