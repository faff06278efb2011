//! Line charts as SVG: several named series over one pair of axes, linear or logarithmic.
//!
//! `plotters` draws; ranges, ticks and the legend are ours, because logarithmic ticks and a legend that never covers a
//! line are not among its own.

use anyhow::{Context, Result};
use models::files::write_atomic;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

const SIZE: (u32, u32) = (900, 540);
/// Around everything.
const MARGIN: i32 = 16;
const TITLE: i32 = 20;
const TEXT: i32 = 14;
/// Of one row of the legend.
const ROW: i32 = 22;
/// Of the line before a name in the legend.
const SAMPLE: i32 = 26;
/// Of a name in the legend, so that one fits on a row.
const MOST_LETTERS: usize = 90;
/// More points than that in one line are not seen.
const MOST_POINTS: usize = 2000;
/// Lines of so few points show them as dots.
const DOTTED: usize = 40;

/// Okabe and Ito's colours, told apart by colour-blind eyes too (<https://jfly.uni-koeln.de/color/>), without the yellow.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences, equal lengths.
    Linear,
    /// Equal ratios, equal lengths; values that are not above zero cannot be shown and are left out.
    Log,
}

/// One axis; its range follows from the points.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What is measured, and its unit.
    pub label: String,
    /// How values are spread.
    pub scale: Scale,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Linear }
    }

    /// A logarithmic axis.
    pub fn log(label: &str) -> Self {
        Self { label: label.to_owned(), scale: Scale::Log }
    }
}

/// One line.
#[derive(Debug, Clone)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// (x, y), x ascending.
    pub points: Vec<(f64, f64)>,
    smooth: bool,
}

impl Series {
    /// A line through all points.
    pub fn new(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), points, smooth: false }
    }

    /// The points pale, and over them their moving average.
    pub fn smoothed(self) -> Self {
        Self { smooth: true, ..self }
    }
}

/// A chart.
#[derive(Debug, Clone)]
pub struct LineChart {
    /// Above all.
    pub title: String,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Lines, in the legend's order.
    pub series: Vec<Series>,
}

impl LineChart {
    /// Writes the chart as an SVG file, atomically.
    pub fn write(&self, file: &Path) -> Result<()> {
        let svg = self.svg().with_context(|| format!("cannot draw {}", file.display()))?;
        write_atomic(file, |writer| writer.write_all(svg.as_bytes()))?;
        Ok(())
    }

    /// The chart as SVG text.
    pub fn svg(&self) -> Result<String> {
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            root.fill(&WHITE)?;
            root.draw(&Text::new(self.title.as_str(), (MARGIN, MARGIN), font(TITLE)))?;
            let below = self.draw_legend(&root, MARGIN + TITLE + 10)?;
            self.draw_lines(&root.margin(below + 6, MARGIN, MARGIN, MARGIN + 8))?;
            root.present()?;
        }
        Ok(svg)
    }

    /// Names side by side, in as many rows as they need; returns where they end.
    fn draw_legend<B>(&self, area: &DrawingArea<B, plotters::coord::Shift>, top: i32) -> Result<i32>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let (mut x, mut y) = (MARGIN, top);
        for (index, series) in self.series.iter().enumerate() {
            let name = shortened(&series.name);
            let width = SAMPLE + 8 + text_width(&name) + 20;
            if x > MARGIN && x + width > SIZE.0 as i32 - MARGIN {
                (x, y) = (MARGIN, y + ROW);
            }
            let middle = y + ROW / 2;
            let line = vec![(x, middle), (x + SAMPLE, middle)];
            area.draw(&PathElement::new(line, colour(index).stroke_width(3)))?;
            let style = font(TEXT).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(name, (x + SAMPLE + 8, middle), style))?;
            x += width;
        }
        Ok(if self.series.is_empty() { top } else { y + ROW })
    }

    fn draw_lines<B>(&self, area: &DrawingArea<B, plotters::coord::Shift>) -> Result<()>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        // Points as they lie on the paper: logarithms where an axis is logarithmic.
        let lines: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| self.placed(series)).collect();
        let xs = range(lines.iter().flatten().map(|point| point.0), self.x.scale, 0.02);
        let ys = range(lines.iter().flatten().map(|point| point.1), self.y.scale, 0.05);
        let (x_ticks, y_ticks) = (ticks(&xs, self.x.scale), ticks(&ys, self.y.scale));
        let mut chart = ChartBuilder::on(area)
            .x_label_area_size(48)
            .y_label_area_size(72)
            .build_cartesian_2d(Ticked { range: xs, ticks: x_ticks }, Ticked { range: ys, ticks: y_ticks })?;
        chart
            .configure_mesh()
            .x_desc(self.x.label.as_str())
            .y_desc(self.y.label.as_str())
            .x_label_formatter(&|value| tick_label(*value, self.x.scale))
            .y_label_formatter(&|value| tick_label(*value, self.y.scale))
            .label_style(font(TEXT - 1))
            .axis_desc_style(font(TEXT))
            .bold_line_style(RGBColor(225, 225, 225))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, (series, points)) in self.series.iter().zip(&lines).enumerate() {
            let colour = colour(index);
            let line = if series.smooth { moving_average(points) } else { points.clone() };
            if series.smooth {
                chart.draw_series(LineSeries::new(thinned(points), colour.mix(0.3)))?;
            }
            if points.len() <= DOTTED {
                let dots = points.iter().map(|point| Circle::new(*point, 3, colour.filled()));
                chart.draw_series(dots)?;
            }
            chart.draw_series(LineSeries::new(thinned(&line), colour.stroke_width(2)))?;
        }
        Ok(())
    }

    fn placed(&self, series: &Series) -> Vec<(f64, f64)> {
        let place = |value: f64, scale| if scale == Scale::Log { value.log10() } else { value };
        let placed = series.points.iter().map(|(x, y)| (place(*x, self.x.scale), place(*y, self.y.scale)));
        placed.filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    }
}

/// A linear axis on paper, with ticks where we want them.
struct Ticked {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Ticked {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Asked a second time for the fine grid, of which there is none.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&RGBColor(40, 40, 40))
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// Without fonts at hand: more than a line of usual letters needs.
fn text_width(text: &str) -> i32 {
    (text.chars().count() as f64 * f64::from(TEXT) * 0.58) as i32
}

/// The end of a name that would not fit on a row: of long paths, what tells them apart.
fn shortened(name: &str) -> String {
    let too_long = name.chars().count().saturating_sub(MOST_LETTERS);
    if too_long == 0 {
        return name.to_owned();
    }
    std::iter::once('…').chain(name.chars().skip(too_long + 1)).collect()
}

/// Where the points lie, with some room; from zero where that is not far away. Never empty.
fn range(values: impl Iterator<Item = f64>, scale: Scale, room: f64) -> Range<f64> {
    let (mut low, mut high) =
        values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 0.0..1.0;
    }
    if scale == Scale::Log {
        let room = ((high - low) * room).max(0.05);
        return low - room..high + room;
    }
    let (positive, negative) = (low >= 0.0, high <= 0.0);
    if low == high || (positive && low < high * 0.4) {
        (low, high) = (low.min(0.0), high.max(0.0));
    }
    if low == high {
        return -1.0..1.0;
    }
    let room = (high - low) * room;
    let low = if positive { (low - room).max(0.0) } else { low - room };
    low..if negative { (high + room).min(0.0) } else { high + room }
}

/// Round values inside a range; on a logarithmic axis (a range of logarithms) round ones of the values themselves.
fn ticks(range: &Range<f64>, scale: Scale) -> Vec<f64> {
    if scale == Scale::Linear {
        return linear_ticks(range);
    }
    let decades = range.end - range.start;
    let multiples: &[f64] = if decades > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let stride = (decades / 8.0).ceil().max(1.0) as usize;
    let powers = (range.start.floor() as i32..=range.end.ceil() as i32).step_by(stride);
    let all = powers.flat_map(|power| multiples.iter().map(move |m| f64::from(power) + m.log10()));
    let inside: Vec<f64> = all.filter(|tick| range.contains(tick)).collect();
    if inside.len() > 2 {
        return inside;
    }
    let values = 10f64.powf(range.start)..10f64.powf(range.end);
    linear_ticks(&values).into_iter().filter(|value| *value > 0.0).map(f64::log10).collect()
}

/// Multiples of 1, 2 or 5 times a power of ten, about six of them.
fn linear_ticks(range: &Range<f64>) -> Vec<f64> {
    let rough = (range.end - range.start) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].map(|m| m * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let (first, last) = ((range.start / step).ceil() as i64, (range.end / step).floor() as i64);
    (first..=last).map(|n| n as f64 * step).collect()
}

/// Short, and free of the last bits' noise.
fn tick_label(value: f64, scale: Scale) -> String {
    let value = if scale == Scale::Log { 10f64.powf(value) } else { value };
    let trimmed = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    if value.abs() < 1e-12 {
        return "0".into();
    }
    if (1e-3..1e6).contains(&value.abs()) {
        return trimmed(&format!("{value:.5}"));
    }
    match format!("{value:.2e}").split_once('e') {
        Some((digits, power)) => format!("{}e{power}", trimmed(digits)),
        None => format!("{value}"),
    }
}

/// Mean over about a twentieth of the line, half before and half after each point, so that it does not lag; towards the ends
/// over as much as there is on both sides.
fn moving_average(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut sums = vec![0.0];
    for (_, y) in points {
        sums.push(sums[sums.len() - 1] + y);
    }
    let average = points.iter().enumerate().map(|(place, (x, _))| {
        let half = (points.len() / 40).min(place).min(points.len() - 1 - place);
        let (from, to) = (place - half, place + half + 1);
        (*x, (sums[to] - sums[from]) / (to - from) as f64)
    });
    average.collect()
}

/// Every so manyth point, and the last.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(MOST_POINTS).max(1);
    let mut thinned: Vec<(f64, f64)> = points.iter().copied().step_by(stride).collect();
    if stride > 1 {
        thinned.extend(points.last());
    }
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(range: Range<f64>, scale: Scale) -> Vec<String> {
        ticks(&range, scale).into_iter().map(|tick| tick_label(tick, scale)).collect()
    }

    /// A plot whose axis reads 0.30000000000000004, or has no number at all, is not shown to anybody.
    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(labels(0.0..1.05, Scale::Linear), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(0.0..612.0, Scale::Linear), ["0", "100", "200", "300", "400", "500", "600"]);
        assert_eq!(labels(-5.2..0.3, Scale::Log), ["1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]);
        assert_eq!(labels(1.9..4.1, Scale::Log), ["100", "200", "500", "1000", "2000", "5000", "10000"]);
        let narrow = labels(0.31..0.33, Scale::Log);
        assert!(narrow.len() > 2 && narrow.contains(&"2.1".to_owned()), "{narrow:?}");
    }

    /// One evaluation, equal values, a zero on a logarithmic axis, no points: runs that end early have all of these, and
    /// must not fail at their plot.
    #[test]
    fn sparse_and_flat_lines_are_drawn() {
        let chart = |points: &[(f64, f64)], y: Axis| {
            let series = vec![Series::new("MRR@10 <dev>", points.to_vec()).smoothed()];
            LineChart { title: "t".into(), x: Axis::linear("step"), y, series }.svg().unwrap()
        };
        for points in [&[][..], &[(600.0, 0.4)], &[(1.0, 0.0), (2.0, 0.0)], &[(1.0, -3.0), (2.0, -3.0)]] {
            for y in [Axis::linear("metric"), Axis::log("metric")] {
                let svg = chart(points, y);
                assert!(svg.contains("MRR@10 &lt;dev&gt;"), "{svg}");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
        assert_eq!(shortened(&"ab".repeat(99)).chars().count(), MOST_LETTERS);
        let long: Vec<(f64, f64)> = (0..100_000).map(|n| (f64::from(n), 1.0)).collect();
        assert!(chart(&long, Axis::linear("loss")).len() < 200_000);
    }

    /// A smoothed line that lags, or bends at its ends, shows a loss that no step had.
    #[test]
    fn averages_lie_on_a_straight_line() {
        let line: Vec<(f64, f64)> = (0..200).map(|n| (f64::from(n), 3.0 - 0.01 * f64::from(n))).collect();
        let noisy = line.iter().map(|(x, y)| (*x, y + if x % 2.0 == 0.0 { 0.5 } else { -0.5 }));
        let averages = moving_average(&noisy.collect::<Vec<_>>());
        let off = |range: Range<usize>| range.map(|n| (averages[n].1 - line[n].1).abs()).fold(0.0, f64::max);
        assert!(off(5..195) < 0.05 && off(0..200) < 0.51, "{} {}", off(5..195), off(0..200));
        let few = [(1.0, 5.0), (2.0, 1.0)];
        assert_eq!(moving_average(&few), few);
        assert_eq!(moving_average(&[]), []);
    }
}
