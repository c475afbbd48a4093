//! `codex metrics plot`: plots metrics over the steps, one panel per metric, one line per run and split. Numbers of evaluations are
//! plotted over the evaluations, with their bounds. Writes the picture.
//!
//! The font (`DejaVu` Sans) is embedded in the program, so that a picture is the same on every machine.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use clap::Args;
use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint},
        types::RangedCoordf64,
    },
    prelude::*,
    style::register_font,
};

use super::{
    error::MetricsError,
    evaluations,
    input::{Input, chosen},
    series::{Name, Run, shown},
};
use crate::{
    arguments::whole,
    artifacts::ledger,
    atomic_fs,
    overlap::{self, Named},
};

/// Plot metrics over the steps.
#[derive(Debug, Args)]
pub(super) struct Plot {
    #[command(flatten)]
    input: Input,
    /// Metric to plot; each has its own panel. May be repeated [default: loss, or `exact_match` of evaluations].
    #[arg(long, value_name = "NAME")]
    metric: Vec<String>,
    /// The picture to write: a name that ends in .svg or .png.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    look: Look,
}

/// The look of a picture.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Look {
    /// Use a logarithmic axis for the values.
    #[arg(long)]
    log: bool,
    /// Width of the picture in pixels.
    #[arg(long, default_value_t = 960, value_parser = whole::<u32>(200..=8000))]
    width: u32,
    /// Height of each panel in pixels.
    #[arg(long, default_value_t = 420, value_parser = whole::<u32>(150..=4000))]
    height: u32,
    /// What the horizontal axis counts.
    #[arg(skip = STEP)]
    pub(super) counted: &'static str,
}

/// What the horizontal axis of a plot of runs counts.
const STEP: &str = "step";

impl Default for Look {
    fn default() -> Self {
        Self { log: false, width: 960, height: 420, counted: STEP }
    }
}

impl Look {
    /// Returns the same look with an axis that counts evaluations.
    pub(super) fn of_evaluations(self) -> Self {
        Self { counted: "evaluation", ..self }
    }
}

impl Plot {
    pub(super) fn run(self) -> Result<(), MetricsError> {
        // Refuses an unknown extension before anything is read.
        Kind::of(&self.output)?;
        self.check_overlap()?;
        if let Some(evaluations) = self.input.evaluations()? {
            let lines = evaluations::plotted(&evaluations);
            let metrics = chosen(&lines, &self.metric, evaluations::METRIC)?;
            return write(&lines, &metrics, self.look.of_evaluations(), &self.output);
        }
        let runs = self.input.read()?;
        write(&runs, &chosen(&runs, &self.metric, "loss")?, self.look, &self.output)
    }
}

impl Plot {
    /// Checks that the picture replaces no ledger and does not change a model or a checkpoint, whose digests cover every file.
    fn check_overlap(&self) -> Result<(), MetricsError> {
        let protected = |run: &PathBuf| {
            let ledger = Named::new("the ledger of RUN", ledger::locate(run));
            let directories = ["model", "checkpoints"].map(|name| Named::new(format!("RUN/{name}"), run.join(name)));
            directories.into_iter().chain([ledger])
        };
        let inputs: Vec<Named> = self.input.runs.iter().flat_map(protected).collect();
        Ok(overlap::check(&[Named::new("--output", &self.output)], &inputs)?)
    }
}

/// Plots `metrics` of `runs` and writes the picture.
///
/// # Errors
/// When the extension is unknown, a value has no logarithm, or the file cannot be written.
pub(super) fn write(runs: &[Run], metrics: &[String], look: Look, output: &Path) -> Result<(), MetricsError> {
    let kind = Kind::of(output)?;
    let panels: Vec<Panel> = metrics.iter().map(|metric| Panel::of(metric, runs, look)).collect::<Result<_, _>>()?;
    let bytes = match kind {
        Kind::Svg => svg(&panels, look)?.into_bytes(),
        Kind::Png => png(&panels, look)?,
    };
    atomic_fs::make_parents(output)?;
    atomic_fs::write(output, &bytes)?;
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Svg,
    Png,
}

impl Kind {
    fn of(path: &Path) -> Result<Self, MetricsError> {
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("svg") => Ok(Self::Svg),
            Some("png") => Ok(Self::Png),
            _ => Err(MetricsError::Picture(path.to_owned())),
        }
    }
}

/// One metric of all runs.
#[derive(Debug)]
struct Panel {
    metric: String,
    log: bool,
    /// What the horizontal axis counts.
    counted: &'static str,
    lines: Vec<Line>,
    steps: Range<f64>,
    /// The range of the values, or of their decadic logarithms.
    values: Range<f64>,
}

#[derive(Debug)]
struct Line {
    label: String,
    points: Vec<(f64, f64)>,
}

/// An axis with given tick marks.
struct Axis {
    line: RangedCoordf64,
    ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.line.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.line.range()
    }
}

impl Panel {
    fn of(metric: &str, runs: &[Run], look: Look) -> Result<Self, MetricsError> {
        let mut lines = Vec::new();
        for run in runs {
            for (Name { split, .. }, series) in run.series.iter().filter(|(name, _)| name.metric == metric) {
                let mut points = Vec::new();
                for (step, value) in series {
                    if look.log && *value <= 0.0 {
                        let (metric, run) = (metric.to_owned(), run.label.clone());
                        return Err(MetricsError::NotPositive { metric, run, step: *step, value: *value });
                    }
                    points.push((*step as f64, if look.log { value.log10() } else { *value }));
                }
                lines.push(Line { label: format!("{} {split}", run.label), points: thin(points, look.width as usize) });
            }
        }
        let points = || lines.iter().flat_map(|line| &line.points);
        let steps = range(points().map(|(step, _)| *step), 0.0);
        let values = range(points().map(|(_, value)| *value), 0.05);
        Ok(Self { metric: metric.to_owned(), log: look.log, counted: look.counted, lines, steps, values })
    }

    /// Returns the tick marks of the value axis.
    fn ticks(&self) -> Vec<f64> {
        if !self.log {
            return round_numbers(&self.values);
        }
        let decades = self.values.start.floor() as i32..=self.values.end.ceil() as i32;
        let of = |digits: &[f64]| -> Vec<f64> {
            let ticks =
                decades.clone().flat_map(|decade| digits.iter().map(move |digit| digit.log10() + f64::from(decade)));
            ticks.filter(|tick| self.values.contains(tick)).collect()
        };
        let all: Vec<f64> = (1..10).map(f64::from).collect();
        let found = [&[1.0][..], &[1.0, 2.0, 5.0], &all].into_iter().map(of).find(|ticks| ticks.len() >= FEW_TICKS);
        let Some(ticks) = found else {
            // Less than a decade: use the ticks of a linear axis.
            let values = 10_f64.powf(self.values.start)..10_f64.powf(self.values.end);
            return round_numbers(&values).into_iter().map(f64::log10).collect();
        };
        // Many decades: keep every second tick, or every third.
        ticks.iter().copied().step_by(ticks.len().div_ceil(2 * MANY_TICKS)).collect()
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Result<(), String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let title = if self.log { format!("{} (logarithmic)", self.metric) } else { self.metric.clone() };
        let mut chart = ChartBuilder::on(area)
            .caption(title, (FONT, 18))
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(72)
            .build_cartesian_2d(self.steps.clone(), Axis { line: self.values.clone().into(), ticks: self.ticks() })
            .map_err(|error| failed(&error))?;
        let value = |at: &f64| short(if self.log { 10_f64.powf(*at) } else { *at });
        chart
            .configure_mesh()
            .x_desc(self.counted)
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&value)
            .label_style((FONT, 13))
            .axis_desc_style((FONT, 14))
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .draw()
            .map_err(|error| failed(&error))?;
        for (index, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let style = colour.stroke_width(2);
            let drawn = chart.draw_series(LineSeries::new(line.points.iter().copied(), style));
            drawn
                .map_err(|error| failed(&error))?
                .label(&line.label)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
            // A line through a single point is invisible.
            if let [point] = line.points[..] {
                let dot = Circle::new(point, 4, colour.filled());
                chart.draw_series(std::iter::once(dot)).map_err(|error| failed(&error))?;
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font((FONT, 13))
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200))
            .draw()
            .map_err(|error| failed(&error))?;
        Ok(())
    }
}

const FONT: &str = "DejaVu Sans, sans-serif";

/// The colours of Okabe and Ito, which are distinguishable with any colour vision; yellow, faint on white, is last.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(240, 228, 66),
];

fn svg(panels: &[Panel], look: Look) -> Result<String, MetricsError> {
    let mut text = String::new();
    draw(SVGBackend::with_string(&mut text, size(panels, look)), panels)?;
    Ok(text)
}

fn png(panels: &[Panel], look: Look) -> Result<Vec<u8>, MetricsError> {
    let (width, height) = size(panels, look);
    let mut pixels = vec![0; 3 * width as usize * height as usize];
    draw(BitMapBackend::with_buffer(&mut pixels, (width, height)), panels)?;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels));
    written.map_err(|error| MetricsError::Drawing(error.to_string()))?;
    Ok(file)
}

fn size(panels: &[Panel], look: Look) -> (u32, u32) {
    (look.width, look.height * panels.len() as u32)
}

fn draw<DB: DrawingBackend>(backend: DB, panels: &[Panel]) -> Result<(), MetricsError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| register_font(FONT, FontStyle::Normal, dejavu::sans::regular()).is_ok());
    if !registered {
        return Err(MetricsError::Drawing("the embedded font cannot be read".to_owned()));
    }
    let drawing = |error: &dyn std::fmt::Display| MetricsError::Drawing(error.to_string());
    let root = backend.into_drawing_area();
    root.fill(&WHITE).map_err(|error| drawing(&error))?;
    for (area, panel) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        panel.draw(area).map_err(MetricsError::Drawing)?;
    }
    root.present().map_err(|error| drawing(&error))
}

/// The least and about the greatest number of ticks of an axis.
const FEW_TICKS: usize = 4;
const MANY_TICKS: usize = 8;

/// Returns multiples of 1, 2 or 5 times a power of ten within a range, about [`MANY_TICKS`] at most.
pub(crate) fn round_numbers(range: &Range<f64>) -> Vec<f64> {
    let least_step = (range.end - range.start) / MANY_TICKS as f64;
    let power = 10_f64.powf(least_step.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= least_step);
    let step = step.unwrap_or(least_step);
    // Rounding must not drop a tick at an end of the range.
    let (first, last) = ((range.start / step - 1e-9).ceil() as i64, (range.end / step + 1e-9).floor() as i64);
    (first..=last).map(|count| count as f64 * step).collect()
}

/// Formats a round value without trailing zeros.
pub(crate) fn short(value: f64) -> String {
    let text = shown(value);
    let (digits, power) = text.split_at(text.find('e').unwrap_or(text.len()));
    let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    format!("{digits}{power}")
}

/// Reduces points to about four per pixel: the least and the greatest value of each stretch of steps.
pub(crate) fn thin(points: Vec<(f64, f64)>, width: usize) -> Vec<(f64, f64)> {
    if points.len() <= 4 * width {
        return points;
    }
    let mut kept = Vec::new();
    for stretch in points.chunks(points.len().div_ceil(2 * width)) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = (stretch.iter().min_by(by_value), stretch.iter().max_by(by_value));
        if let (Some(least), Some(greatest)) = ends {
            kept.push(*least);
            if least.0.to_bits() != greatest.0.to_bits() {
                kept.push(*greatest);
            }
        }
    }
    kept.sort_by(|a, b| a.0.total_cmp(&b.0));
    kept
}

/// Returns the range of the numbers, widened by `margin` times its width; never empty.
pub(crate) fn range(numbers: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let (least, greatest) =
        numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, greatest), x| (least.min(x), greatest.max(x)));
    if least > greatest {
        return 0.0..1.0;
    }
    let width = greatest - least;
    // A flat line is drawn in the middle.
    let margin = if width > 0.0 { width * margin } else { (least.abs() * 0.1).max(0.5) };
    least - margin..greatest + margin
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::ledger::{
        Ledger,
        tests::{row, text},
    };

    fn runs() -> Vec<Run> {
        let rows = |offset: f64| (1..200_u64).map(|step| row(step, "loss", offset + 3.0 / step as f64)).collect();
        let ledger = |offset| Ledger { rows: rows(offset), ..Ledger::default() };
        vec![Run::of("a<&>\"".to_owned(), &ledger(0.1)), Run::of("b".to_owned(), &ledger(0.5))]
    }

    fn panels(look: Look) -> Vec<Panel> {
        vec![Panel::of("loss", &runs(), look).unwrap()]
    }

    #[test]
    fn an_svg_has_a_line_for_each_run_and_escapes_its_name() {
        let drawn = svg(&panels(Look::default()), Look::default()).unwrap();
        let lines = drawn.matches("<polyline").count();
        assert!(lines >= 2, "{drawn}");
        assert!(drawn.contains("a&lt;&amp;&gt;") && !drawn.contains("a<&"), "{drawn}");
        assert!(drawn.contains("#0072B2") && drawn.contains("#D55E00"), "{drawn}");
        assert_eq!(drawn, svg(&panels(Look::default()), Look::default()).unwrap());
    }

    #[test]
    fn a_png_can_be_read_and_shows_lines_and_letters() {
        let look = Look { log: true, ..Look::default() };
        let file = png(&panels(look), look).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((frame.width, frame.height), (960, 420));
        let count = |colour: [u8; 3]| pixels.chunks(3).filter(|pixel| *pixel == colour).count();
        assert!(count([0, 114, 178]) > 300 && count([213, 94, 0]) > 300);
        // Without a font, only the axes would be black.
        let title = pixels[..3 * 960 * 40].chunks(3).filter(|pixel| pixel.iter().all(|part| *part < 100)).count();
        assert!(title > 50, "{title}");
    }

    #[test]
    fn values_without_a_logarithm_are_refused() {
        let rows = vec![row(1, "loss", 1.0), row(2, "loss", -1.0)];
        let run = Run::of("a".to_owned(), &Ledger { rows, ..Ledger::default() });
        let look = Look { log: true, ..Look::default() };
        let error = Panel::of("loss", &[run], look).unwrap_err().to_string();
        assert_eq!(error, "--log needs values above 0, but loss of a is -1 at step 2: omit --log");
        assert!(Kind::of(Path::new("a.jpg")).is_err() && Kind::of(Path::new("A.PNG")).is_ok());
    }

    #[test]
    fn ticks_are_round() {
        let ticks = |log: bool, least: f64, greatest: f64| -> Vec<String> {
            let values = if log { least.log10()..greatest.log10() } else { least..greatest };
            let panel = Panel { metric: String::new(), log, counted: STEP, lines: Vec::new(), steps: 0.0..1.0, values };
            panel.ticks().into_iter().map(|at| short(if log { 10_f64.powf(at) } else { at })).collect()
        };
        assert_eq!(ticks(true, 0.09, 3.98), ["0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(ticks(true, 0.65, 4.5), ["0.7", "0.8", "0.9", "1", "2", "3", "4"]);
        assert_eq!(ticks(true, 3.1, 3.9), ["3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9"]);
        assert_eq!(ticks(true, 0.9, 11_000.0), ["1", "10", "100", "1000", "10000"]);
        assert!((FEW_TICKS..=2 * MANY_TICKS).contains(&ticks(true, 1e-30, 1e30).len()));
        assert_eq!(ticks(false, -0.05, 3.2), ["0", "0.5", "1", "1.5", "2", "2.5", "3"]);
        assert_eq!(ticks(false, 2e-5, 9e-5).first().map(String::as_str), Some("2e-5"));
    }

    #[test]
    fn one_point_and_a_flat_line_have_a_panel() {
        for values in [vec![(1, 2.0)], vec![(1, 2.0), (2, 2.0)]] {
            let rows: Vec<_> = values.iter().map(|(step, value)| row(*step, "loss", *value)).collect();
            let run = Run::of("a".to_owned(), &Ledger::parse(&text(&rows)));
            let panel = Panel::of("loss", &[run], Look::default()).unwrap();
            assert!(!svg(&[panel], Look::default()).unwrap().is_empty());
        }
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
        (points[777].1, points[5555].1) = (9.0, -9.0);
        let kept = thin(points, 200);
        assert!(kept.len() <= 800 && kept.contains(&(777.0, 9.0)) && kept.contains(&(5555.0, -9.0)));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
