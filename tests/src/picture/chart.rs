//! Lines over time, alone or stacked.

use codex_metrics::dashboard::{Panel, Shape};

use super::{
    Line,
    axis::{self, Axis},
    svg::{self, Anchor, Rectangle, Svg},
    value,
};
use crate::prometheus::Window;

/// The ticks of the axis of values.
const TICKS: u32 = 4;
/// The space of the labels at the left, and of those below.
const LABELS: (f64, f64) = (66.0, 15.0);
/// The height of a line of the legend, and the most lines.
const LEGEND: (f64, usize) = (13.0, 3);
/// The space of the mark before a legend, and of that after it.
const MARK: (f64, f64) = (12.0, 10.0);

/// A line that is ready to be drawn: its values, and those below it if it is stacked.
struct Stacked {
    points: Vec<(f64, f64)>,
    base: Vec<f64>,
}

/// Draws the lines of a panel into a rectangle. Returns false if there are none.
pub(super) fn draw(svg: &mut Svg, panel: &Panel, place: Rectangle, window: Window, lines: &[Line]) -> bool {
    if lines.is_empty() {
        return false;
    }
    let legend = legend(lines, place.width - 16.0);
    let height = place.height - LABELS.1 - legend.len() as f64 * LEGEND.0 - 8.0;
    let plot = Rectangle { x: place.x + LABELS.0, y: place.y + 2.0, width: place.width - LABELS.0 - 10.0, height };
    let stacked = stack(lines, panel.shape == Shape::Stack);
    let values =
        stacked.iter().flat_map(|line| line.points.iter().zip(&line.base).map(|((_, value), base)| value + base));
    let axis = Axis::new(values, panel.from_zero(), TICKS);
    let y = |value: f64| plot.y + plot.height * (1.0 - axis.share(value));
    let seconds = (window.end - window.start).max(window.step);
    let x = |at: f64| plot.x + plot.width * (at - window.start) / seconds;
    for tick in &axis.ticks {
        svg.rule(plot.x, plot.x + plot.width, y(*tick));
        svg.text(plot.x - 5.0, y(*tick) + 3.5, Anchor::End, "a", &value::shown(panel.unit, *tick));
    }
    for time in axis::times(seconds) {
        let at = x(window.start + time);
        // Beside the first label is one of the values, and beside the last one is the edge of the panel.
        let anchor = match at - plot.x {
            from_start if from_start < 12.0 => Anchor::Start,
            from_start if from_start > plot.width - 12.0 => Anchor::End,
            _ => Anchor::Middle,
        };
        svg.text(at, plot.y + plot.height + 12.0, anchor, "a", &value::clock(time));
    }
    for (number, line) in stacked.iter().enumerate() {
        let drawn: Vec<Vec<_>> = parts(line, window.step)
            .map(|part| {
                part.map(|index| (x(line.points[index].0), y(line.points[index].1 + line.base[index]))).collect()
            })
            .collect();
        if panel.shape == Shape::Stack {
            for (part, upper) in parts(line, window.step).zip(&drawn) {
                let lower: Vec<_> = part.map(|index| (x(line.points[index].0), y(line.base[index]))).collect();
                svg.area(upper, &lower, svg::colour(number));
            }
        }
        svg.line(&drawn, svg::colour(number));
    }
    let top = plot.y + plot.height + LABELS.1 + 9.0;
    for (row, entries) in legend.iter().enumerate() {
        let (mut at, y) = (place.x + 8.0, top + row as f64 * LEGEND.0);
        for entry in entries {
            if let Some(series) = entry.series {
                svg.filled(Rectangle { x: at, y: y - 4.5, width: 9.0, height: 2.5 }, svg::colour(series));
            }
            svg.text(at + MARK.0, y, Anchor::Start, "l", &entry.text);
            at += entry.width();
        }
    }
    true
}

/// Returns the lines, each on top of those before it if they are stacked. A series that is missing at a time adds nothing.
fn stack(lines: &[Line], stacked: bool) -> Vec<Stacked> {
    // Times are equal to the bit, because Prometheus evaluates all queries of a panel at the same ones.
    let mut sums = std::collections::BTreeMap::<u64, f64>::new();
    let on_top = |line: &Line| {
        let base = line.points.iter().map(|(at, value)| {
            let sum = sums.entry(at.to_bits()).or_default();
            let base = if stacked { *sum } else { 0.0 };
            *sum += value;
            base
        });
        Stacked { base: base.collect(), points: line.points.clone() }
    };
    lines.iter().map(on_top).collect()
}

/// Returns the stretches of a line without a gap, as ranges of its points.
fn parts(line: &Stacked, step: f64) -> impl Iterator<Item = std::ops::Range<usize>> {
    let gap = |index: &usize| line.points[*index].0 - line.points[index - 1].0 > 1.5 * step;
    let starts: Vec<_> = std::iter::once(0).chain((1..line.points.len()).filter(gap)).collect();
    let ends: Vec<_> = starts.iter().skip(1).copied().chain([line.points.len()]).collect();
    starts.into_iter().zip(ends).map(|(start, end)| start..end)
}

/// An entry of a legend: a series, or how many were left out.
struct Entry {
    series: Option<usize>,
    text: String,
}

impl Entry {
    fn width(&self) -> f64 {
        MARK.0 + self.text.chars().count() as f64 * svg::SMALL + MARK.1
    }
}

/// Returns the legend in lines of at most `width` pixels. If there are too many series, the last entry says how many more.
fn legend(lines: &[Line], width: f64) -> Vec<Vec<Entry>> {
    let (mut rows, mut used) = (vec![Vec::new()], 0.0);
    for (number, line) in lines.iter().enumerate() {
        let text = svg::shortened(&line.legend, width - MARK.0, svg::SMALL);
        let mut entry = Entry { series: Some(number), text };
        let left = lines.len() - number;
        let more = |left: usize| Entry { series: None, text: format!("and {left} more") };
        // What comes after this entry must fit, too.
        let tail = if rows.len() == LEGEND.1 && left > 1 { more(left).width() } else { 0.0 };
        if used > 0.0 && used + entry.width() + tail > width + MARK.1 {
            if rows.len() == LEGEND.1 {
                entry = more(left);
                rows[LEGEND.1 - 1].push(entry);
                return rows;
            }
            rows.push(Vec::new());
            used = 0.0;
        }
        used += entry.width();
        if let Some(row) = rows.last_mut() {
            row.push(entry);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(legend: &str, points: &[(f64, f64)]) -> Line {
        Line { legend: legend.to_owned(), points: points.to_vec() }
    }

    #[test]
    fn lines_are_stacked_where_both_exist() {
        let lines = [line("a", &[(0.0, 1.0), (1.0, 2.0)]), line("b", &[(1.0, 5.0), (2.0, 7.0)])];
        let base = |stacked| stack(&lines, stacked).into_iter().map(|line| line.base).collect::<Vec<_>>();
        assert_eq!(base(true), [[0.0, 0.0], [2.0, 0.0]]);
        assert_eq!(base(false), [[0.0, 0.0], [0.0, 0.0]]);
    }

    #[test]
    fn a_gap_ends_a_stretch() {
        let line = &stack(&[line("a", &[(0.0, 1.0), (2.0, 1.0), (8.0, 1.0), (10.0, 1.0)])], false)[0];
        assert_eq!(parts(line, 2.0).collect::<Vec<_>>(), [0..2, 2..4]);
        assert_eq!(parts(line, 10.0).map(|part| part.len()).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn a_legend_has_few_lines_and_says_what_it_leaves_out() {
        let lines: Vec<_> = (0..30).map(|number| line(&format!("series {number}"), &[])).collect();
        let rows = legend(&lines, 300.0);
        assert_eq!(rows.len(), LEGEND.1);
        let shown = rows.iter().flatten().filter(|entry| entry.series.is_some()).count();
        assert_eq!(rows[2].last().unwrap().text, format!("and {} more", 30 - shown));
        for row in &rows {
            assert!(row.iter().map(Entry::width).sum::<f64>() <= 300.0 + MARK.1);
        }
        assert_eq!(legend(&lines[..3], 300.0).iter().map(Vec::len).sum::<usize>(), 3);
        assert_eq!(legend(&[line(&"x".repeat(99), &[])], 300.0).len(), 1);
    }
}
