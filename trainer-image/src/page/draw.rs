//! Pictures of a page as inline SVG: gates with value, bounds and limit, and curves over steps. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use codex_verdict::{Bound, Comparison, Decimal, Gate, GateResult, Scale};
use maud::{Markup, html};

use crate::metrics::{range, round_numbers, short, thin};

/// Width of the picture of a gate, in its own units.
const GATE: f64 = 640.0;
/// Width and height of a curve's picture, in its own units.
const CURVE: (f64, f64) = (720.0, 260.0);
/// Space for the labels of a curve's axes: left, top, right, bottom.
const MARGINS: (f64, f64, f64, f64) = (64.0, 10.0, 12.0, 34.0);

/// The number that a value must reach, and whether greater values pass.
fn limit(bound: &Bound) -> (f64, bool) {
    match bound {
        Bound::Min(least) => (*least, true),
        Bound::Max(most) => (*most, false),
        Bound::BetterThan(Comparison { by, .. }) => (*by, true),
        Bound::NotWorseThan(Comparison { by, .. }) => (-by, true),
    }
}

/// Draws a gate: the values that pass, the limit, the measured value and its bounds. `None` if nothing was measured.
pub(super) fn gate(gate: &Gate, result: &GateResult) -> Option<Markup> {
    let number = |decimal: &Option<Decimal>| decimal.as_ref()?.0.parse::<f64>().ok().filter(|it| it.is_finite());
    let value = number(&result.value)?;
    let bounds = number(&result.lower).zip(number(&result.upper));
    let (limit, passes_above) = limit(&gate.bound);
    let (least, most) = if gate.bound.comparison().is_none() && gate.metric.scale() == Scale::Unit {
        (0.0, 1.0)
    } else {
        let all = [value, limit].into_iter().chain(bounds.into_iter().flat_map(|(lower, upper)| [lower, upper]));
        let found = range(all, 0.1);
        (found.start, found.end)
    };
    let place = |number: f64| 10.0 + (GATE - 20.0) * ((number - least) / (most - least)).clamp(0.0, 1.0);
    let at = |number: f64| format!("{:.1}", place(number));
    let (start, end) = if passes_above { (place(limit), GATE - 10.0) } else { (10.0, place(limit)) };
    let anchor = if place(limit) > GATE / 2.0 { "end" } else { "start" };
    let label = format!("{} {}: {}", gate.metric, gate.bound, result.message);
    Some(html! {
        svg viewBox=(format!("0 0 {GATE} 54")) role="img" aria-label=(label) {
            rect class="track" x="10" y="18" width=(GATE - 20.0) height="14" {}
            rect class="pass" x=(format!("{start:.1}")) y="18" width=(format!("{:.1}", (end - start).max(0.0))) height="14" {}
            @if let Some((lower, upper)) = bounds {
                line class="interval" x1=(at(lower)) x2=(at(upper)) y1="25" y2="25" {}
            }
            circle class="value" cx=(at(value)) cy="25" r="5" {}
            line class="limit" x1=(at(limit)) x2=(at(limit)) y1="12" y2="38" {}
            text x=(at(limit)) y="9" text-anchor=(anchor) { "limit " (limit) }
            text x="10" y="50" { (short(least)) }
            text x=(GATE - 10.0) y="50" text-anchor="end" { (short(most)) }
        }
    })
}

/// Draws values over steps, a line for each name.
pub(super) fn curves(series: &BTreeMap<String, Vec<(f64, f64)>>) -> Markup {
    let (width, height) = CURVE;
    let (left, top, right, bottom) = MARGINS;
    let points = || series.values().flatten();
    let steps = range(points().map(|(step, _)| *step), 0.0);
    let values = range(points().map(|(_, value)| *value), 0.05);
    let x = |step: f64| left + (width - left - right) * (step - steps.start) / (steps.end - steps.start);
    let y =
        |value: f64| height - bottom - (height - top - bottom) * (value - values.start) / (values.end - values.start);
    let line = |points: &[(f64, f64)]| {
        let mut text = String::new();
        for (step, value) in thin(points.to_vec(), width as usize) {
            let _ = write!(text, "{:.1},{:.1} ", x(step), y(value));
        }
        text
    };
    let class = |name: &str| match name {
        "train" => "curve train",
        "val" => "curve val",
        _ => "curve other",
    };
    let names: Vec<&str> = series.keys().map(String::as_str).collect();
    html! {
        svg viewBox=(format!("0 0 {width} {height}")) role="img" aria-label=(format!("loss over steps: {}", names.join(", "))) {
            @for tick in round_numbers(&values) {
                line class="grid" x1=(left) x2=(width - right) y1=(format!("{:.1}", y(tick))) y2=(format!("{:.1}", y(tick))) {}
                text x=(left - 8.0) y=(format!("{:.1}", y(tick) + 4.0)) text-anchor="end" { (short(tick)) }
            }
            @for tick in round_numbers(&steps) {
                text x=(format!("{:.1}", x(tick))) y=(height - 12.0) text-anchor="middle" { (short(tick)) }
            }
            @for (name, points) in series {
                // A line through one point is invisible.
                @if let [(step, value)] = points[..] {
                    circle class="value" cx=(format!("{:.1}", x(step))) cy=(format!("{:.1}", y(value))) r="4" {}
                } @else {
                    polyline class=(class(name)) points=(line(points)) {}
                }
            }
            @for (index, name) in names.iter().enumerate() {
                line class=(class(name)) x1=(width - 120.0) x2=(width - 100.0) y1=(18 + 18 * index) y2=(18 + 18 * index) {}
                text x=(width - 94.0) y=(22 + 18 * index) { (name) }
            }
        }
    }
}
