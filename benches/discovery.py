"""Prints the figures of benches/discovery.sh beside their bounds."""

import json
import statistics
import sys

work, pairs, few, many = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


def target(name):
    with open(f"{work}/{name}.json", encoding="utf-8") as file:
        return json.load(file)["targets"][0]


def row(name, value, unit, bound=None):
    shown = "" if bound is None else f"at most {bound:g} {unit}"
    print(f"{name:<44} {value:>10.1f} {unit:<3} {shown}")


costs = target("costs")
document = costs["document"]
print(f"{document['groups']} groups, {document['versions']} versions, {document['json_bytes'] / 1e6:.2f} MB of JSON")
bounds = {"aggregated": 4500, "gzip": 450, "not-modified": None, "legacy": 120}
for read in costs["reads"]:
    cpu = read["cpu_us_per_read"]
    if read["failed"] or cpu is None:
        row(f"{read['kind']}: {read['failed']} failed, CPU not measured", read["count"], "")
    else:
        row(f"{read['kind']}: CPU a read", cpu, "µs", bounds[read["kind"]])
complete = costs["scenario"]["complete_well_after_registration_ms"]
row("all backends of 100 ms merged", complete, "ms", 350)
visible = costs["scenario"]["visible"]["added_after_answer"]
if visible:
    row("one more visible, from its answer on", visible["ms"], "ms", 20)

p99 = {
    hung: [target(f"hung-{hung}-{pair}")["reads"][0]["latency_us"]["p99"] for pair in range(1, pairs + 1)]
    for hung in ("0", few, many)
}
for hung in dict.fromkeys((few, many)):
    ratios = [with_hung / without for with_hung, without in zip(p99[hung], p99["0"]) if with_hung and without]
    if ratios:
        row(f"p99 of gzip reads with {hung} hung, to that with none", statistics.median(ratios), "×", 1.3)
