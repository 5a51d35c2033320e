"""A sampler in, its numbers out, with all that is needed to get them again."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from dsno.checkpoint import tensor_sha
from dsno.grids import uniform
from dsno.measure.evaluate import Reference, evaluate, halves, measure
from dsno.measure.features import as_extractor, extract
from dsno.measure.fidelity import psnr
from dsno.measure.metrics import diversity, frechet_distance, precision_recall
from dsno.measure.results import Cost, Fidelity, Result
from dsno.measure.table import copied
from dsno.nets.features import FeatureNet
from dsno.schedule import Cosine, RectifiedFlow
from dsno.seeds import generator, noise, seed_range
from dsno.solvers.fine import fine_solution
from dsno.solvers.first_order import Ancestral
from dsno.solvers.heun import Heun
from dsno.solvers.run import SolverSampler
from dsno.teachers.closed import GaussianMixture
from dsno.trajectory import Sampler, Trajectory

SHAPE, N = (1, 8, 8), 96


@pytest.fixture(scope="module")
def teacher() -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    means = (torch.rand(12, *SHAPE, generator=g) * 1.4 - 0.7).round(decimals=1)
    return GaussianMixture(Cosine(), means, 0.1, labels=torch.arange(12) % 3)


@pytest.fixture(scope="module")
def reference(teacher: GaussianMixture) -> Tensor:
    return teacher.sample(128, torch.Generator().manual_seed(1)).clamp(-1, 1)


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    torch.manual_seed(2)
    return FeatureNet("random_cnn", width=4)


@pytest.fixture(scope="module")
def fine(teacher: GaussianMixture) -> Tensor:
    return fine_solution(teacher, teacher.schedule, noise(seed_range(0, N), SHAPE), 128).sample


def ddim(teacher: GaussianMixture, steps: int) -> SolverSampler:
    return SolverSampler(teacher, teacher.schedule, uniform(steps))


@pytest.fixture(scope="module")
def results(teacher: GaussianMixture, reference: Tensor, net: FeatureNet, fine: Tensor) -> list[Result]:
    # Of another law, as will do for numbers that are compared among samplers.
    shared = Reference.of(reference, net, held_out=-reference[:40])
    common = {"shape": SHAPE, "seeds": seed_range(0, N), "reference": shared, "extractor": net, "fine": fine}
    samplers = [evaluate(ddim(teacher, n), name=f"DDIM-{n}", repeats=1, batch=40, **common) for n in (2, 8, 64)]
    return [*samplers, measure(fine.clamp(-1, 1), name="fine", reference=shared, extractor=net)]


# The numbers


def test_more_steps_are_nearer_to_the_path(results: list[Result]) -> None:
    two, eight, many, _ = results
    assert two.path_error > eight.path_error > many.path_error > 0
    assert many.path_error < 0.1
    assert many.quality.frechet < two.quality.frechet
    assert many.quality.diversity > two.quality.diversity


def test_a_part_of_the_reference_against_the_rest_is_the_floor(reference: Tensor, net: FeatureNet) -> None:
    whole = Reference.of(reference, net)
    few, half = halves(whole, net, 5), halves(reference, net, 10**6)
    N = len(reference)  # of the set, not of the samples
    assert (few.name, half.name) == ("real, other half", f"real, other half ({N // 2} images)")
    assert (few.protocol.count, few.protocol.reference_count) == (5, N - 5)
    assert (half.protocol.count, half.protocol.reference_count) == (N // 2, N - N // 2)
    assert few.cost == Cost() and halves(whole, net, 5) == few
    # The mean over splits of the features: what is measured and what it is measured against make the set.
    found = []
    for draw in range(8):
        order = torch.randperm(N, generator=generator(draw))
        fake, rest = whole.features[order[:5]], whole.features[order[5:]]
        found.append((frechet_distance(fake, rest), *precision_recall(fake, rest), diversity(fake, rest)))
    q = few.quality
    expected = torch.tensor(found, dtype=torch.float64).mean(0).tolist()
    assert [q.frechet, q.precision, q.recall, q.diversity] == pytest.approx(expected) and q.frechet > 0
    with pytest.raises(ValueError, match="half of the reference set must be more than k = 3 images, the set has 7"):
        halves(reference[:7], net, 4)


def test_cost_is_what_the_sampler_says(results: list[Result]) -> None:
    for result, steps in zip(results[:3], (2, 8, 64), strict=True):
        assert (result.cost.nfe, result.cost.rounds) == (steps, steps)
        assert result.cost.seconds == pytest.approx(N * result.cost.seconds_per_sample)
        assert result.cost.latency > 0
    assert (results[3].cost.nfe, results[3].cost.rounds, results[3].cost.latency) == (0, 0, None)


def test_heun_costs_two_evaluations_a_step(teacher: GaussianMixture) -> None:
    sampler = SolverSampler(teacher, teacher.schedule, uniform(4), Heun())
    result = evaluate(sampler, name="Heun", shape=SHAPE, seeds=[5], repeats=0, flops_per_row=10)
    assert (result.cost.nfe, result.cost.rounds, result.cost.flops) == (7, 7, 70)
    assert result.quality is None and result.path_error is None and result.cost.latency is None


def test_flops_are_counted_where_they_are_not_given() -> None:
    layer = nn.Linear(2, 2)
    sampler = SolverSampler(lambda x, t, cond=None: layer(x), Cosine(), uniform(3))
    assert evaluate(sampler, name="linear", shape=(2,), seeds=range(7), repeats=0).cost.flops == 3 * 2 * 2 * 2


def test_the_numbers_do_not_depend_on_the_batch(teacher: GaussianMixture, reference: Tensor, net: FeatureNet) -> None:
    run = {"shape": SHAPE, "seeds": seed_range(7, 20), "reference": reference, "extractor": net, "repeats": 0}
    made = [evaluate(ddim(teacher, 4), name="DDIM-4", batch=batch, **run) for batch in (20, 7)]
    a, b = (dataclasses.asdict(result.quality) for result in made)
    assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_seeds_condition_and_progress_reach_the_sampler(teacher: GaussianMixture) -> None:
    seen: list[tuple[Tensor, Tensor | None, Tensor | None]] = []

    def sampler(z: Tensor, cond: Tensor | None = None, seeds: Tensor | None = None) -> Trajectory:
        seen.append((z, cond, seeds))
        return ddim(teacher, 1)(z, cond, seeds)

    cond, steps = torch.arange(5) % 3, []
    run = {"shape": SHAPE, "seeds": [9, 4, 2, 8, 1], "cond": cond, "batch": 2, "repeats": 0, "flops_per_row": 0}
    evaluate(sampler, name="x", progress=lambda *done: steps.append(done), **run)
    assert torch.equal(torch.cat([z for z, _, _ in seen]), noise([9, 4, 2, 8, 1], SHAPE))
    assert torch.equal(torch.cat([c for _, c, _ in seen]), cond)
    assert torch.cat([s for _, _, s in seen]).tolist() == [9, 4, 2, 8, 1]
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_samples_are_held_against_the_classes_that_were_asked_for(teacher: GaussianMixture, net: FeatureNet) -> None:
    run = {"name": "x", "shape": SHAPE, "seeds": range(12), "extractor": net, "repeats": 0}
    said = net(ddim(teacher, 4)(noise(range(12), SHAPE)).sample.clamp(-1, 1)).argmax(1)
    asked = torch.where(torch.arange(12) < 9, said, (said + 1) % 10)
    assert evaluate(ddim(teacher, 4), **run, labels=asked).accuracy == 0.75
    assert evaluate(ddim(teacher, 4), **run).accuracy is None


def test_stochastic_samplers_are_evaluated_alike(teacher: GaussianMixture) -> None:
    sampler = SolverSampler(teacher, teacher.schedule, uniform(4), Ancestral())
    alone = [sampler(noise([n], SHAPE), None, torch.tensor([n])).sample for n in range(6)]
    run = {"shape": SHAPE, "seeds": range(6), "fine": torch.cat(alone), "batch": 4}
    result = evaluate(sampler, name="DDPM-4", repeats=1, **run)
    # A sample's noises are its seed's, in any batch: of other ones it would end elsewhere.
    assert result.cost.nfe == 4 and result.path_error < 1e-5


def test_a_path_error_has_a_median_that_outliers_do_not_move() -> None:
    fine = torch.zeros(5, 2)
    fine[0] = 100.0

    def sampler(z: Tensor, cond: Tensor | None = None, seeds: Tensor | None = None) -> Trajectory:
        return Trajectory(torch.full((len(z), 1, 2), 0.5), torch.zeros(1), nfe=1, rounds=1)

    result = evaluate(sampler, name="x", shape=(2,), seeds=range(5), fine=fine)
    assert result.path_error_median == 0.5
    assert result.path_error == pytest.approx(math.sqrt((99.5**2 + 4 * 0.25) / 5))


# The protocol


def test_the_protocol_is_complete(results: list[Result], reference: Tensor, net: FeatureNet, fine: Tensor) -> None:
    protocol = results[0].protocol
    # All but what `compare` notes of conditions.
    assert [name for name, value in dataclasses.asdict(protocol).items() if value == ""] == ["told"]
    assert (protocol.count, protocol.seeds, protocol.batch, protocol.repeats) == (N, f"0..{N - 1}", 40, 1)
    assert (protocol.extractor, protocol.extractor_sha) == ("random_cnn", as_extractor(net).sha)
    assert (protocol.reference_count, protocol.reference_sha) == (128, tensor_sha(reference))
    held_out = (protocol.held_out_count, protocol.held_out_sha, protocol.held_out_shared)
    assert held_out == (40, tensor_sha(-reference[:40]), 0)
    assert (protocol.fine_sha, protocol.kernel_subsets) == (tensor_sha(fine), f"50 x {N}")
    assert protocol.values == "clamped to [-1, 1]" and protocol.rounding == "none" and protocol.dtype == "float32"
    assert protocol.torch == torch.__version__ and protocol.torchmetrics[0].isdigit()


def test_seeds_that_are_not_consecutive_are_named_by_checksum(teacher: GaussianMixture) -> None:
    result = evaluate(ddim(teacher, 1), name="x", shape=SHAPE, seeds=[3, 1], repeats=0)
    assert result.protocol.seeds == f"sha256 {tensor_sha(torch.tensor([3, 1]))}"


def test_rounding_is_applied_to_both_sets_and_written_down(reference: Tensor, net: FeatureNet) -> None:
    levels = (reference * 2).round() / 2  # five levels already
    fine, coarse = (measure(levels, name="x", reference=reference, extractor=net, levels=n) for n in (None, 5))
    assert fine.quality.frechet > 1e-6
    assert coarse.quality.frechet < 1e-9
    assert coarse.protocol.rounding == "5 levels"
    with pytest.raises(ValueError, match="levels"):
        measure(levels, name="x", reference=reference, extractor=net, levels=1)


def test_samples_are_clamped_for_features_but_not_for_the_path_error(reference: Tensor, net: FeatureNet) -> None:
    def sampler(z: Tensor, cond: Tensor | None = None, seeds: Tensor | None = None) -> Trajectory:
        return Trajectory((3 * z).unsqueeze(1), torch.zeros(1), nfe=1, rounds=1)

    z = noise(seed_range(0, 16), SHAPE)
    common = {"shape": SHAPE, "seeds": seed_range(0, 16), "reference": reference, "extractor": net}
    result = evaluate(sampler, name="x", fine=3 * z, **common)
    assert result.path_error == 0
    assert result.quality == measure((3 * z).clamp(-1, 1), name="x", reference=reference, extractor=net).quality


def test_families_are_names_without_their_number(results: list[Result], teacher: GaussianMixture) -> None:
    assert [result.family for result in results] == ["DDIM", "DDIM", "DDIM", "fine"]
    run = {"shape": SHAPE, "seeds": [1], "repeats": 0}
    assert evaluate(ddim(teacher, 1), name="DPM-Solver++-16", **run).family == "DPM-Solver++"
    assert evaluate(ddim(teacher, 1), name="DSNO", family="students", **run).family == "students"


# What is refused


def broken(value: float, rows: int = 1) -> Sampler:
    def sampler(z: Tensor, cond: Tensor | None = None, seeds: Tensor | None = None) -> Trajectory:
        x = z.unsqueeze(1).clone()
        x[:rows] = value
        return Trajectory(x, torch.zeros(1), nfe=1, rounds=1)

    return sampler


def test_bad_arguments_are_one_clear_error(teacher: GaussianMixture, reference: Tensor, net: FeatureNet) -> None:
    run = {"name": "x", "shape": SHAPE, "seeds": range(8), "repeats": 0}
    sampler = ddim(teacher, 1)
    with pytest.raises(ValueError, match="all different"):
        evaluate(sampler, **{**run, "seeds": []})
    with pytest.raises(ValueError, match="all different"):
        evaluate(sampler, **{**run, "seeds": [1, 1, 2]})
    with pytest.raises(ValueError, match="batch must be positive"):
        evaluate(sampler, **run, batch=0)
    with pytest.raises(ValueError, match="fine has 3 rows but there are 8 seeds"):
        evaluate(sampler, **run, fine=torch.zeros(3, *SHAPE))
    with pytest.raises(ValueError, match="cond.weight has 2 rows but there are 8 seeds"):
        evaluate(sampler, **run, cond={"label": torch.zeros(8), "weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="labels has 2 rows but there are 8 seeds"):
        evaluate(sampler, **run, labels=torch.zeros(2))
    with pytest.raises(ValueError, match="labels are told by a FeatureNet, and the extractor is a NoneType"):
        evaluate(sampler, **run, labels=torch.zeros(8))
    with pytest.raises(ValueError, match="needs an extractor"):
        evaluate(sampler, **run, reference=reference)
    with pytest.raises(ValueError, match="reference set is constant"):
        evaluate(sampler, **run, reference=torch.zeros(9, *SHAPE), extractor=net)
    with pytest.raises(ValueError, match="not from other_cnn"):
        evaluate(sampler, **run, reference=Reference.of(reference, net), extractor=FeatureNet("other_cnn"))
    with pytest.raises(ValueError, match="not from random_cnn with rounding 9 levels"):
        evaluate(sampler, **run, reference=Reference.of(reference, net), extractor=net, levels=9)


def test_images_that_are_measured_must_be_in_range(reference: Tensor, net: FeatureNet) -> None:
    with pytest.raises(ValueError, match=r"'uint8' must lie in \[-1, 1\]"):
        measure(reference * 255, name="uint8", reference=reference, extractor=net)


def test_a_bad_reference_is_found_before_sampling(net: FeatureNet) -> None:
    def sampler(z: Tensor, cond: Tensor | None = None, seeds: Tensor | None = None) -> Trajectory:
        raise AssertionError("sampled")

    with pytest.raises(ValueError, match=r"lie in \[-1, 1\]"):
        evaluate(sampler, name="x", shape=SHAPE, seeds=[1], reference=torch.rand(9, *SHAPE) * 255, extractor=net)


def test_bad_samples_are_one_clear_error(reference: Tensor, net: FeatureNet) -> None:
    run = {"shape": SHAPE, "seeds": range(8), "reference": reference, "extractor": net, "repeats": 0}
    with pytest.raises(ValueError, match="DSNO made values that are not finite in 3 of 8 samples"):
        evaluate(broken(math.nan, 3), name="DSNO", **run)
    with pytest.raises(ValueError, match="'DSNO' is constant"):
        evaluate(broken(0.0, 8), name="DSNO", **run)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), expected \(3, 8, 8\)"):
        evaluate(lambda z, *rest: broken(0.0)(z[:, :1]), name="DSNO", **{**run, "shape": (3, 8, 8)})


def test_rectified_flow_in_two_dimensions_needs_no_images() -> None:
    teacher = GaussianMixture(RectifiedFlow(), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.1)
    seeds = seed_range(0, 50)
    fine = fine_solution(teacher, teacher.schedule, noise(seeds, (2,))).sample
    few, many = (
        evaluate(ddim(teacher, n), name=f"DDIM-{n}", shape=(2,), seeds=seeds, fine=fine, repeats=0) for n in (2, 64)
    )
    assert many.path_error < few.path_error and many.quality is None


# What was held out


def returning(images: Tensor) -> Sampler:
    """A sampler that knows images by heart: with a little noise, those that its seeds are of."""

    def sampler(z: Tensor, cond: Tensor | None = None, seeds: Tensor | None = None) -> Trajectory:
        return Trajectory((images[seeds % len(images)] + 0.01 * z).unsqueeze(1), torch.zeros(1), nfe=1, rounds=1)

    return sampler


def test_a_sampler_of_what_it_was_trained_on_copies_and_one_of_the_law_does_not(
    teacher: GaussianMixture, reference: Tensor, net: FeatureNet
) -> None:
    held_out = teacher.sample(200, torch.Generator().manual_seed(3)).clamp(-1, 1)
    known = Reference.of(reference, net, held_out=held_out)
    run = {"shape": SHAPE, "seeds": range(200), "reference": known, "extractor": net, "repeats": 0}
    copier = evaluate(returning(reference), name="copier", **run)
    law = evaluate(ddim(teacher, 64), name="law", **run)
    real = halves(known, net, 64)
    assert copier.held_out.copying < 0.2 and law.held_out.copying == pytest.approx(1, abs=0.1)
    assert real.held_out.copying == pytest.approx(1, abs=0.1)
    # The usual distance praises the copier, the other one does not.
    assert copier.quality.frechet < 0.2 * law.quality.frechet
    assert copier.held_out.frechet > 3 * copier.quality.frechet
    assert copied([copier, law, real]).startswith("copier copies the training data: copying is 0.")
    # Nothing else is another number for it; and images that are there already have the same.
    assert evaluate(ddim(teacher, 64), name="law", **run | {"reference": reference}).quality == law.quality
    x = ddim(teacher, 64)(noise(seed_range(0, 200), SHAPE)).sample.clamp(-1, 1)
    assert measure(x, name="x", reference=known, extractor=net).held_out.copying == pytest.approx(law.held_out.copying)


def test_what_is_held_out_is_rounded_as_the_reference_is(reference: Tensor, net: FeatureNet) -> None:
    levels = (reference * 2).round() / 2  # five levels
    assert Reference.of(levels, net, held_out=levels[:40] * 0.99).held_out.shared == 0
    with pytest.raises(ValueError, match="40 of the 40 held-out images are in the reference set"):
        Reference.of(levels, net, 5, levels[:40] * 0.99)
    with pytest.raises(ValueError, match=r"the held-out set must lie in \[-1, 1\]"):
        Reference.of(levels, net, held_out=levels * 255)


# Samples of inputs


def test_samples_are_held_against_what_their_inputs_should_give(
    teacher: GaussianMixture, reference: Tensor, net: FeatureNet
) -> None:
    z, clean = noise(seed_range(0, 8), SHAPE), reference[:8]
    common = {"shape": SHAPE, "seeds": seed_range(0, 8), "repeats": 0, "clean": clean, "samples": 2}
    made = evaluate(ddim(teacher, 4), name="DDIM", reference=reference[8:], extractor=net, **common)
    x = ddim(teacher, 4)(z).sample.clamp(-1, 1)
    assert made.fidelity is not None and made.fidelity.psnr == pytest.approx(float(psnr(x, clean).mean()), abs=1e-4)
    distance = (extract(net, x) - extract(net, clean)).norm(dim=1).mean()
    assert made.fidelity.feature_distance == pytest.approx(float(distance), rel=1e-3)
    assert made.fidelity.spread == pytest.approx(float(x.reshape(4, 2, -1).std(1).square().mean().sqrt()), rel=1e-3)
    # The quality is that of a set with one sample of each input.
    assert made.quality == measure(x[::2], name="x", reference=reference[8:], extractor=net).quality
    assert made.protocol.count == 4 and made.protocol.seeds == "0..7"
    alone = evaluate(ddim(teacher, 4), name="DDIM", **common)
    assert alone.quality is None and alone.fidelity == dataclasses.replace(made.fidelity, feature_distance=None)


def test_a_picture_that_is_its_reference_has_no_ratio(reference: Tensor) -> None:
    assert measure(reference, name="same", clean=reference).fidelity == Fidelity(None)


def test_samples_that_are_not_so_many_of_each_input_are_refused(teacher: GaussianMixture, reference: Tensor) -> None:
    common = {"name": "DDIM", "shape": SHAPE, "seeds": seed_range(0, 8)}
    with pytest.raises(ValueError, match="8 samples cannot be 3 of each input"):
        evaluate(ddim(teacher, 1), samples=3, **common)
    with pytest.raises(ValueError, match="clean has 7 rows but there are 8 seeds"):
        evaluate(ddim(teacher, 1), clean=reference[:7], **common)
