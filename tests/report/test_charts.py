"""Charts show the counts they were given, to the eye and in their data table."""

import re

import numpy as np
import pytest

from curator.report.charts import Bar, draw_columns, draw_histogram, format_count, format_share, share_bar
from curator.report.counts import LogBins
from curator.report.histogram import Histogram, count_histogram
from curator.report.summaries import bin_bars, format_bytes


def rows_of(chart: str) -> list[list[str]]:
    body = chart.split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("</tr>") if row]


def test_the_table_of_a_histogram_counts_what_numpy_counts() -> None:
    score_T = np.random.default_rng(0).normal(0.3, 1, 20_000).astype(np.float16).astype(np.float32)
    chart = draw_histogram(
        count_histogram(score_T, score_T > 0.25), title="Scores", description="Described.", unit="nats", cut=0.25
    )
    rows = rows_of(chart)
    edges = [float(row[0].split(" to ")[0]) for row in rows] + [float(rows[-1][0].split(" to ")[1])]
    scored, _ = np.histogram(score_T[score_T < edges[-1]], edges)
    kept, _ = np.histogram(score_T[(score_T < edges[-1]) & (score_T > 0.25)], edges)
    assert [int(row[1].replace(",", "")) for row in rows] == scored.tolist()
    assert [int(row[2].replace(",", "")) for row in rows] == kept.tolist()
    outside = len(score_T) - scored.sum()
    assert 0 < outside < 0.01 * len(score_T)
    assert f"{outside:,} tokens" in chart
    assert "cut 0.250" in chart


def test_bars_are_as_high_as_their_share() -> None:
    values = np.repeat(np.float32([0.03, 0.09, 0.15, 0.2]), [10, 20, 30, 40])
    chart = draw_histogram(count_histogram(values, values > 0.1), title="t", description="d", unit="u")
    heights = [float(height) for height in re.findall(r'<rect class="\w+" [^>]* height="([\d.]+)%"', chart)]
    assert heights == pytest.approx([25, 50, 75, 100])  # the axis ends at 40%
    assert chart.count('<rect class="kept"') == 2


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [5.0] * 3, [-60_000.0, 60_000.0], [np.inf, -np.inf, 1.0], [0.001, 0.002], [9.0, 12.0, 14.0, 300.0]],
)
def test_any_range_of_values_can_be_drawn_and_nothing_is_lost_without_a_word(values: list[float]) -> None:
    array = np.array(values, np.float32)
    for cut in (None, 0.5, -np.inf):
        chart = draw_histogram(
            count_histogram(array, array > 0), title="t", description="", unit="u", cut=cut and float(cut)
        )
        drawn = sum(int(row[1].replace(",", "")) for row in rows_of(chart))
        found = re.search(r"([\d,]+) tokens \(", chart)
        assert drawn + (int(found[1].replace(",", "")) if found else 0) == len(values)
        assert "nan" not in chart
        assert len(rows_of(chart)) < 130


def test_columns_have_a_title_a_description_and_their_numbers() -> None:
    chart = draw_columns([Bar("1–2", 0.5, 0.0, ("7",))], title="<Title>", description="Words.", head=("range", "n"))
    assert "<title>&lt;Title&gt;</title><desc>Words.</desc>" in chart
    assert rows_of(chart) == [["1–2", "7"]]
    assert 'height="50.000%"' in chart
    assert draw_columns([], title="t", description="d", head=())


def test_doubling_bins_are_labelled_by_their_range() -> None:
    bins = LogBins(documents=(1, 1, 1, 1), tokens=(1, 1, 2, 4), scored=(0, 1, 2, 4), kept=(0, 1, 1, 1))
    assert [(bar.label, bar.kept, bar.cells) for bar in bin_bars(bins)] == [
        ("1", 1.0, ("1", "1", "1", "1", "100.0%")),
        ("2–4", 0.5, ("1", "2", "2", "1", "50.0%")),
        ("4–8", 0.25, ("1", "4", "4", "1", "25.0%")),
    ]
    assert bin_bars(LogBins()) == []


def test_numbers_are_short_and_exact_where_they_fit() -> None:
    assert [format_count(n) for n in (0, 99_999, 100_000, 1_234_567, 20_500_000, 3_000_000_000, 7.2e13)] == [
        "0", "99,999", "100 K", "1.23 M", "20.5 M", "3.00 B", "72.00 T",
    ]  # fmt: skip
    assert [format_bytes(n) for n in (5, 999, 76_000_000, 123_456_789_000)] == ["5 B", "999 B", "76 MB", "123 GB"]
    assert (format_share(1, 3), format_share(0, 0)) == ("33.3%", "–")
    assert 'width="100.00%"' in share_bar(1.2, "all")


def test_an_empty_histogram_is_the_default() -> None:
    assert count_histogram(np.float32([np.nan]), np.array([False])) == Histogram()
