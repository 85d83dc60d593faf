"""The roofline as a picture: every timed row at its case's intensity, under the ceilings of the same run."""

from pathlib import Path

from .cases import Case, Ceilings


def draw(file: Path, cases: list[Case], rows: list, ceilings: Ceilings) -> str:
    """Writes a PNG. Returns a sentence that says where, or why not."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        return f"no roofline picture: {error}"
    intensity = {case.name: case.flops / case.bytes for case in cases}
    figure, axes = pyplot.subplots(figsize=(10, 6))
    low, high = 1.0, 2 * max([*intensity.values(), ceilings.flops / ceilings.bytes])
    ridge = ceilings.flops / ceilings.bytes
    roof = [(x, min(ceilings.flops, x * ceilings.bytes) / 1e12) for x in (low, ridge, high)]
    axes.plot(*zip(*roof), color="black", label="measured ceilings")
    for name in dict.fromkeys(row.implementation for row in rows if row.us):
        timed = [row for row in rows if row.implementation == name and row.us]
        axes.scatter([intensity[r.case] for r in timed], [r.tflops for r in timed], s=18, label=name)
    for name, x in intensity.items():
        axes.annotate(name, (x, low * ceilings.bytes / 1e12), fontsize=6, rotation=90, ha="center")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="TFLOP/s", xlim=(low, high))
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return f"roofline drawn in {file}"
