"""llm_env/calibrate.py and llm_env/measured.py: known parameters come back, and wrong files are explained."""

from __future__ import annotations

import numpy as np
import pytest

from llm_env.calibrate import FILES, fit_service
from llm_env.cli import main
from llm_env.config import read_scenario
from llm_env.errors import UserError
from llm_env.measured import read_batches, read_table
from llm_env.scenarios import service_from_text

TRUTH = {
    "setup_ms": 57.1609,
    "per_token_ms": 0.314032,
    "free_tokens": 42,
    "decode_fixed_ms": 1.672,
    "kv_ms_per_1k_cached_tokens": 0.110053,
    "prefill_attention_ms_per_1m_token_context": 7.9648,
}


def measured(n: int = 4000, noise_ms: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Batches under TRUTH: some of decodes only, some of prefill only, most mixed."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 513, n)
    decodes = np.minimum(tokens, rng.integers(0, 129, n) * (rng.random(n) < 0.8))
    cached = decodes * rng.integers(50, 2000, n)
    chunk = tokens - decodes
    context = chunk * (chunk + rng.integers(0, 4000, n))
    ms = TRUTH["setup_ms"] + TRUTH["per_token_ms"] * np.maximum(0, tokens - TRUTH["free_tokens"])
    ms = ms + TRUTH["decode_fixed_ms"] * (decodes > 0) + TRUTH["kv_ms_per_1k_cached_tokens"] * cached / 1e3
    ms = ms + TRUTH["prefill_attention_ms_per_1m_token_context"] * context / 1e6 + rng.normal(0, noise_ms, n)
    columns = {"tokens": tokens, "ms": ms, "decodes": decodes, "cached_tokens": cached, "prefill_context": context}
    return {name: column.astype(float) for name, column in columns.items()}


def csv(batches: dict[str, np.ndarray]) -> str:
    rows = zip(*(c.tolist() if n == "ms" else c.astype(int).tolist() for n, c in batches.items()), strict=True)
    return "\n".join([",".join(batches), *(",".join(map(repr, row)) for row in rows)]) + "\n"


def test_parameters_of_batches_without_noise_do_not_come_back():
    fit = fit_service(measured())
    for name, value in TRUTH.items():
        assert getattr(fit.service, name) == pytest.approx(value, rel=1e-6), name
    assert fit.r2 == pytest.approx(1.0)
    assert fit.mape < 1e-9
    assert fit.terms == tuple(TRUTH)


@pytest.mark.parametrize("seed", range(3))
def test_parameters_of_noisy_batches_do_not_come_back(seed):
    batches = measured(noise_ms=3.0, seed=seed)
    fit = fit_service(batches)
    matrix = [np.ones(4000), np.maximum(0, batches["tokens"] - 42), batches["decodes"] > 0]
    matrix += [-1.0 * (batches["tokens"] > 42) * TRUTH["per_token_ms"]]  # how S moves with b0
    matrix += [batches["cached_tokens"] / 1e3, batches["prefill_context"] / 1e6]
    x = np.stack(matrix, axis=1)
    errors = 3.0 * np.sqrt(np.diag(np.linalg.inv(x.T @ x)))
    names = ["setup_ms", "per_token_ms", "decode_fixed_ms", "free_tokens", *list(TRUTH)[4:]]
    for name, error in zip(names, errors, strict=True):
        assert abs(getattr(fit.service, name) - TRUTH[name]) < 4 * error + (name == "free_tokens"), name
    assert fit.r2 == pytest.approx(1 - 9.0 / np.var(batches["ms"]), abs=0.002)
    assert fit.mape == pytest.approx(np.mean(3.0 * np.sqrt(2 / np.pi) / batches["ms"]), rel=0.05)


def test_a_file_without_optional_columns_gets_terms():
    batches = {name: column for name, column in measured(noise_ms=1.0).items() if name in ("tokens", "ms")}
    service = fit_service(batches).service
    assert (service.decode_fixed_ms, service.kv_ms_per_1k_cached_tokens) == (0.0, 0.0)
    assert service.prefill_attention_ms_per_1m_token_context == 0.0


def test_the_search_for_b0_misses_the_best_of_all_whole_numbers():
    rng = np.random.default_rng(5)
    tokens = np.sort(rng.integers(1, 200, 60)).astype(float)
    ms = 20.0 + 0.5 * np.maximum(0, tokens - 77) + rng.normal(0, 1.0, 60)
    fit = fit_service({"tokens": tokens, "ms": ms})
    residuals = []
    for free in range(199):
        x = np.stack([np.ones(60), np.maximum(0.0, tokens - free)], axis=1)
        residuals.append(float(((x @ np.linalg.lstsq(x, ms, rcond=None)[0] - ms) ** 2).sum()))
    assert float(((fit.fitted_ms - ms) ** 2).sum()) == pytest.approx(min(residuals))
    assert fit.service.free_tokens == int(np.argmin(residuals))


def test_a_b0_that_no_batch_shows_is_guessed():
    tokens = np.arange(100.0, 200.0)
    service = fit_service({"tokens": tokens, "ms": 10 + 0.5 * (tokens - 20)}).service
    assert (service.free_tokens, service.setup_ms, service.per_token_ms) == (0, pytest.approx(0), pytest.approx(0.5))


def test_a_term_is_fitted_that_the_batches_cannot_tell():
    batches = measured(200)
    batches["decodes"] = np.ones(200)
    fit = fit_service({name: batches[name] for name in ("tokens", "ms", "decodes")})
    assert fit.left_out == ("decodes",)
    assert fit.service.decode_fixed_ms == 0.0
    batches["prefill_context"] = 2.0 * batches["cached_tokens"]
    with pytest.raises(UserError, match="cannot be told apart"):
        fit_service(batches)
    with pytest.raises(UserError, match="different sizes, got 8 in all"):
        fit_service({"tokens": np.full(9, 8.0), "ms": np.arange(1.0, 10.0)})
    with pytest.raises(UserError, match="expected more than 3 batches for as many numbers, got 3"):
        fit_service({"tokens": np.arange(1.0, 4.0), "ms": np.arange(1.0, 4.0)})


def test_the_command_prints_or_writes_something_else(tmp_path, capsys):
    path, out = tmp_path / "batches.csv", tmp_path / "out"
    path.write_text(csv(measured(500)))
    assert main(["calibrate", str(path), "--out", str(out)]) == 0
    said = capsys.readouterr().out.split()
    assert [said[said.index(name) + 1] for name in ("setup_ms", "free_tokens", "R^2")] == ["57.1609", "42", "1.000000"]
    assert sorted(p.name for p in out.iterdir()) == sorted(FILES)
    assert (out / "fit.png").read_bytes().startswith(b"\x89PNG")
    service = read_scenario(out / "service.toml").system.service
    assert service == service_from_text(str(out / "service.toml"))
    assert service.kv_ms_per_1k_cached_tokens == pytest.approx(TRUTH["kv_ms_per_1k_cached_tokens"])
    again = tmp_path / "again"
    assert main(["calibrate", str(path), "--out", str(again)]) == 0
    for name in FILES:
        assert (again / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: empty file"),
        ("tokens,ms\n", "2:1: no batches"),
        ("tokens\n1\n", "1:2: ms: column missing"),
        ("tokens,ms,ms\n1,1,1\n", "1:3: ms: a second column"),
        ("tokens,ms,gpu\n1,1,1\n", '1:3: unknown column "gpu"'),
        ("tokens,ms\n0,1\n", '2:1: tokens: expected an integer from 1 to 1048576, got "0"'),
        ("tokens,ms\n1,1\n2,0\n", '3:2: ms: expected a number above 0 and at most 1e+09, got "0"'),
        ("tokens,ms\n1,nan\n", '2:2: ms: expected a number above 0 and at most 1e+09, got "nan"'),
        ("tokens,ms\n1,1e10\n", "2:2: ms: expected"),
        ("tokens,ms\n1,-1\n", "2:2: ms: expected"),
        ("tokens,ms\n1_0,1\n", "2:1: tokens: expected"),
        ("tokens,ms\n1, 1\n", "2:2: ms: expected"),
        ("tokens,ms\n1\n", "2:2: too few fields: expected 2, got 1"),
        ("tokens,ms\n1,1,1\n", "2:3: too many fields"),
        ("tokens,ms\n\n1,1\n", "2:1: blank line"),
        ("tokens,ms,decodes\n4,1,5\n", "2:3: decodes: expected at most the batch's 4 tokens, got 5"),
        ("tokens,ms,decodes,cached_tokens\n4,1,0,9\n", "2:4: cached_tokens: expected 0 in a batch without decodes"),
        ("tokens,ms,decodes,prefill_context\n4,1,4,9\n", "2:4: prefill_context: expected 0 in a batch of decodes only"),
    ],
)
def test_a_wrong_file_is_read_or_badly_explained(text, problem, tmp_path, capsys):
    path = tmp_path / "batches.csv"
    path.write_text(text)
    assert main(["calibrate", str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"error: {path}:{problem}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_more_than_the_first_problems_are_told(tmp_path):
    path = tmp_path / "batches.csv"
    path.write_text("tokens,ms\n" + "0,0\n" * 30)
    with pytest.raises(UserError) as error:
        read_batches(path)
    assert len(str(error.value).splitlines()) == 21
    assert "and 40 more problems" in str(error.value)


def test_a_file_that_is_absent_or_no_text_is_no_clear_error(tmp_path, capsys):
    assert main(["calibrate", str(tmp_path / "no.csv")]) == 3
    path = tmp_path / "batches.csv"
    path.write_bytes(b"tokens,ms\n\xff,1\n")
    assert main(["calibrate", str(path)]) == 2
    assert "batches.csv:2: not UTF-8 text (byte 0xff)" in capsys.readouterr().err


def test_a_measured_table_is_not_its_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbfms,tokens\r\n10,4\r\n10.5,8\r\n30,16")
    service = service_from_text(str(path))
    assert service == read_table(path)
    assert service.points == ((4, 10.0), (8, 10.5), (16, 30.0))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("4,10\n", "expected from 2 to 256 points, got 1"),
        ("".join(f"{k},1\n" for k in range(1, 300)), "expected from 2 to 256 points, got 299"),
        ("4,10\n4,11\n", "3:1: tokens: expected more than 4, got 4"),
        ("4,10\n5,9.5\n", "3:2: ms: expected at least 10, got 9.5"),
    ],
)
def test_a_table_that_falls_or_turns_back_is_read(rows, problem, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("tokens,ms\n" + rows)
    with pytest.raises(UserError, match=problem):
        read_table(path)


def test_optional_columns_are_taken_in_a_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("tokens,ms,decodes\n4,10,1\n5,11,1\n")
    with pytest.raises(UserError, match='1:3: unknown column "decodes"'):
        read_table(path)


def test_a_run_with_a_table_cannot_be_repeated_from_its_scenario(tmp_path):
    table, out, again = tmp_path / "table.csv", tmp_path / "out", tmp_path / "again"
    table.write_text("tokens,ms\n1,20\n64,22\n512,90\n")
    run = ["simulate", "--load", "0.3", "--policy", "sarathi", "--scenario"]
    assert main([*run, "chat", "--service", str(table), "--out", str(out)]) == 0
    table.unlink()
    assert main([*run, str(out / "scenario.toml"), "--out", str(again)]) == 0
    assert (again / "requests.csv.gz").read_bytes() == (out / "requests.csv.gz").read_bytes()
