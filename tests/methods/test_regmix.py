"""RegMix on losses that follow a known law of the mixture: the fit finds a better one and says how well it knows."""

import numpy as np
import pytest

from dataflex_tools.core.config import from_mapping, to_mapping
from dataflex_tools.core.errors import ConfigError, DataError
from dataflex_tools.methods.regmix import Known, Regmix, RegmixSettings, fit_runs
from dataflex_tools.ops.surrogates import REGRESSORS
from tests.helpers import FLOAT64
from tests.methods.domains import domains

GIVEN = domains([60, 25, 10, 5])  # wiki, code, math, chat
NATURAL = np.array([0.6, 0.25, 0.1, 0.05])
SMALL = {"num_runs": 64, "num_rounds": 150, "num_folds": 4, "num_candidates": 5000, "num_best": 32}


def law(weight_SK):
    """Losses that fall with a domain's own share and a little with another's, as data mixing laws have it."""
    speed_KK = np.full((4, 4), 0.3) + np.diag([4.0, 4.0, 9.0, 1.0])
    return np.array([1.5, 1.0, 0.5, 2.5]) + np.array([1.0, 1.5, 3.0, 0.3]) * np.exp(-weight_SK @ speed_KK.T)


def fitted(given=GIVEN, response=law, seed=0, noise=0.0, **settings):
    method = Regmix(RegmixSettings(**{**SMALL, **settings}))
    weight_SK = method.mixtures(given, rng=np.random.default_rng(seed))
    loss_SK = response(weight_SK) + noise * np.random.default_rng(seed + 1).normal(size=weight_SK.shape)
    return method.fit(given, weight_SK, loss_SK, rng=np.random.default_rng(seed + 2))


@pytest.mark.parametrize("regressor", ["gaussian_process", "gradient_boosting"])
def test_it_finds_a_mixture_better_than_natural_and_than_nearly_all_runs(regressor):
    for seed in range(3):
        mixture = fitted(seed=seed, noise=0.02, regressor=regressor)
        found, natural = law(mixture.weight_SK).mean(), law(NATURAL[None]).mean()
        run_losses = mixture.tables["fit"]["target"]
        assert found < natural - 0.1
        assert (run_losses < found).mean() < 0.1
        assert mixture.facts["spearman"] > 0.8


def test_for_a_mean_of_many_domains_it_is_not_worse_than_natural():
    # natural is good for all domains, corners are bad for the mean
    given = domains(np.arange(1, 18) * 100, names=[f"d{k:02}" for k in range(17)])

    def even(weight_SK):
        return 1 + np.exp(-30 * weight_SK)

    natural = even(given.share_K[None]).mean()
    for regressor in REGRESSORS:
        mixture = fitted(given, response=even, regressor=regressor, num_runs=96)
        assert mixture.facts["predicted"] <= mixture.facts["predicted_natural"]
        if regressor != "linear":
            assert even(mixture.weight_SK).mean() < natural


@pytest.mark.parametrize("regressor", REGRESSORS)
def test_a_named_domain_or_its_weight_moves_the_mixture_to_what_lowers_its_loss(regressor):
    own = fitted(regressor=regressor, target="math")
    mean = fitted(regressor=regressor)
    assert own.weight_SK[0, 2] >= mean.weight_SK[0, 2] > NATURAL[2]
    assert own.weight_SK[0, 2] > mean.weight_SK[0, 2] or regressor == "linear"  # it ends in the same corner
    weighted = fitted(regressor=regressor, target={"math": 5.0})
    np.testing.assert_array_equal(weighted.weight_SK, own.weight_SK)


def test_of_a_linear_law_the_fit_is_exact_and_the_facts_say_so():
    mixture = fitted(regressor="linear", response=lambda weight_SK: weight_SK * np.array([3.0, 2.0, 1.0, 4.0]))
    assert mixture.facts["spearman"] == 1
    assert mixture.facts["rmse"] < 1e-12
    np.testing.assert_allclose(mixture.facts["predicted"], mixture.weight_SK[0] @ [3, 2, 1, 4] / 4, **FLOAT64)
    np.testing.assert_allclose(mixture.facts["predicted_natural"], NATURAL @ [3, 2, 1, 4] / 4, **FLOAT64)


@pytest.mark.parametrize("regressor", REGRESSORS)
def test_losses_without_a_law_have_no_rank_correlation(regressor):
    noise = np.random.default_rng(5).normal(size=(64, 4))
    # under no law it has a standard deviation of 1 / sqrt(63); held-out means make it negative, if anything
    assert fitted(regressor=regressor, response=lambda _: noise).facts["spearman"] < 0.4


def test_equal_losses_have_no_rank_correlation_at_all():
    assert fitted(response=lambda weight_SK: np.full(weight_SK.shape, 2.0)).facts["spearman"] is None


@pytest.mark.parametrize("regressor", REGRESSORS)
def test_the_mixture_belongs_to_the_names_not_to_their_order(regressor):
    place = [2, 0, 3, 1]
    turned = domains(GIVEN.num_tokens_K[place], names=[GIVEN.names[k] for k in place])
    mixture = fitted(turned, response=lambda weight_SK: law(weight_SK[:, np.argsort(place)])[:, place], regressor=regressor)
    np.testing.assert_allclose(mixture.weight_SK, fitted(regressor=regressor).weight_SK[:, place], **FLOAT64)


def test_no_share_is_above_what_the_runs_could_have():
    mixture = fitted(max_upsampling=2.0, target="math")
    assert (mixture.weight_SK[0] <= np.minimum(2 * NATURAL, 1)).all()


def test_the_table_holds_what_each_run_had_and_what_was_predicted_of_it():
    mixture = fitted()
    fit = mixture.tables["fit"]
    weight_SK = Regmix(RegmixSettings(**SMALL)).mixtures(GIVEN, rng=np.random.default_rng(0))
    assert fit["run"].tolist() == list(range(64))
    np.testing.assert_allclose(fit["target"], law(weight_SK).mean(axis=1), **FLOAT64)
    error = np.sqrt(((fit["predicted_held_out"] - fit["target"]) ** 2).mean())
    np.testing.assert_allclose(mixture.facts["rmse"], error, **FLOAT64)
    assert mixture.facts["best_run"] == {"run": int(fit["target"].argmin()), "target": float(fit["target"].min())}


def test_a_loss_that_is_not_finite_is_an_error_that_names_domain_and_run():
    def broken(weight_SK):
        loss_SK = law(weight_SK)
        loss_SK[3, 1] = np.nan
        return loss_SK

    with pytest.raises(DataError, match="held-out loss of 'code' after run 3 is nan, wanted a number"):
        fitted(response=broken)
    assert np.isfinite(fitted(response=broken, target="math").weight_SK).all()


def test_a_target_that_is_no_domain_is_an_error_before_anything_is_trained():
    method = Regmix(RegmixSettings(**SMALL, target="maths"))
    with pytest.raises(ConfigError, match="target names 'maths', which is no domain of the data; did you mean 'math'"):
        method.mixtures(GIVEN, rng=np.random.default_rng(0))


def test_too_few_runs_or_domains_are_an_error_before_anything_is_trained():
    many = domains([10] * 6)
    with pytest.raises(ConfigError, match="4 runs are too few to fit 6 domains; wanted at least 12"):
        Regmix(RegmixSettings(num_runs=4, num_folds=2)).mixtures(many, rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="found one domain, a mixture needs two"):
        Regmix(RegmixSettings()).mixtures(domains([10]), rng=np.random.default_rng(0))


def test_a_cap_on_passes_over_the_data_counts_its_tokens():
    free = fitted(target="math")
    assert free.weight_SK[0, 2] > 0.3
    mixture = fitted(target="math", target_tokens=100, repetition=3.0)  # of 10 tokens
    assert mixture.weight_SK[0, 2] <= 0.3 * (1 + 1e-12)
    assert mixture.facts["unconstrained"]["weights"]["math"] == free.weight_SK[0, 2]


def test_a_cap_that_no_mixture_keeps_is_an_error_before_anything_is_trained():
    method = Regmix(RegmixSettings(**SMALL, target_tokens=1000))
    with pytest.raises(ConfigError, match="4 passes over all domains are 400 tokens"):
        method.mixtures(GIVEN, rng=np.random.default_rng(0))


def test_settings_that_were_written_before_there_were_others_are_read():
    old = {
        "num_runs": 512, "prior_exponent": 0.5, "strengths": [0.1, 5.0], "max_upsampling": 15.0, "min_share": 0.0002,
        "regressor": "gradient_boosting", "num_rounds": 1000, "num_folds": 5, "num_candidates": 100000, "num_best": 128,
        "target": "mean",
    }  # fmt: skip
    settings = from_mapping(RegmixSettings, old, where="regmix")
    assert {key: to_mapping(settings)[key] for key in old} == old


def test_runs_of_anyone_are_fitted_as_those_of_a_swarm():
    method = Regmix(RegmixSettings(**SMALL))
    weight_SK = method.mixtures(GIVEN, rng=np.random.default_rng(0))
    wanted = method.fit(GIVEN, weight_SK, law(weight_SK), rng=np.random.default_rng(2))
    known = Known(GIVEN.names, NATURAL, None)
    found = fit_runs(known, weight_SK, law(weight_SK).mean(axis=1), method.settings, rng=np.random.default_rng(2))
    np.testing.assert_allclose(found.weight_SK, wanted.weight_SK, **FLOAT64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strengths": (5.0, 0.1)}, "strengths are 5.0 and 0.1, wanted 0 < low <= high"),
        ({"min_share": 0.0}, "min_share is 0.0"),
        ({"prior_exponent": float("nan")}, "prior_exponent is nan"),
        ({"target": {"math": -1.0}}, "weight of 'math' is -1.0"),
        ({"regressor": "boosting"}, "regressor is 'boosting'; known: gaussian_process, gradient_boosting"),
    ],
)
def test_settings_out_of_range_are_an_error(settings, message):
    with pytest.raises(ConfigError, match=message):
        RegmixSettings(**settings)
