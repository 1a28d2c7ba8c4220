//! A line chart as SVG text: axes, grid, lines, a legend. Pure.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 42.0;
/// Ticks of a linear axis, about.
const TICKS: f64 = 6.0;
/// Lines have these classes in turn; the page gives them colours.
const COLOURS: usize = 6;

/// How values become places on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log,
    /// Percentiles: equal steps for 90, 99, 99.9, ...
    Nines,
}

/// One line.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

pub struct Chart<'a> {
    pub title: &'a str,
    pub x: (&'a str, Scale),
    pub y: (&'a str, Scale),
    pub lines: Vec<Line>,
}

impl Chart<'_> {
    /// The drawing; nothing where there is no point to draw.
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = Axis::over(self.x.1, points().map(|point| point.0));
        let y = Axis::over(self.y.1, points().map(|point| point.1));
        let (Some(x), Some(y)) = (x, y) else { return String::new() };
        let across = |value| LEFT + x.place(value) * (WIDTH - LEFT - RIGHT);
        let up = |value| HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut out = format!(
            "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"16\">{title}</text>\n",
            title = escaped(self.title),
        );
        for (value, label) in x.ticks() {
            let at = across(value);
            let bottom = HEIGHT - BOTTOM;
            push(
                &mut out,
                format_args!(
                    "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" \
                 y2=\"{bottom}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
                    bottom + 16.0
                ),
            );
        }
        for (value, label) in y.ticks() {
            let at = up(value);
            push(
                &mut out,
                format_args!(
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" \
                 y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
                    WIDTH - RIGHT,
                    LEFT - 6.0,
                    at + 4.0
                ),
            );
        }
        push(
            &mut out,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text x=\"{:.1}\" y=\"16\" text-anchor=\"end\">{}</text>\n",
                (LEFT + WIDTH - RIGHT) / 2.0,
                HEIGHT - 8.0,
                escaped(self.x.0),
                WIDTH - RIGHT,
                escaped(self.y.0),
            ),
        );
        for (index, line) in self.lines.iter().enumerate() {
            let places = line.points.iter().filter(|point| x.holds(point.0) && y.holds(point.1));
            let places = places.map(|(px, py)| format!("{:.1},{:.1}", across(*px), up(*py)));
            push(
                &mut out,
                format_args!(
                    "<polyline class=\"line c{}\" points=\"{}\"><title>{}</title></polyline>\n",
                    index % COLOURS,
                    places.collect::<Vec<_>>().join(" "),
                    escaped(&line.name),
                ),
            );
        }
        out.push_str("</svg>\n");
        self.legend(&mut out);
        out.push_str("</figure>\n");
        out
    }

    fn legend(&self, out: &mut String) {
        out.push_str("<figcaption>");
        for (index, line) in self.lines.iter().enumerate() {
            let (class, name) = (index % COLOURS, escaped(&line.name));
            push(out, format_args!("<span class=\"key c{class}\">{name}</span> "));
        }
        out.push_str("</figcaption>");
    }
}

/// Writing to a string cannot fail.
fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

/// Text that is safe inside an element or an attribute.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

impl Axis {
    /// An axis that holds all values; `None` where there are none.
    fn over(scale: Scale, values: impl Iterator<Item = f64>) -> Option<Axis> {
        let values = values.filter(|value| value.is_finite());
        let values = values.filter(|value| scale != Scale::Log || *value > 0.0);
        let (low, high) = values.map(|value| scale.turned(value)).fold(None, |range, value| {
            let (low, high) = range.unwrap_or((value, value));
            Some((value.min(low), value.max(high)))
        })?;
        let (low, high) = match scale {
            Scale::Linear => (low.min(0.0), high.max(low.min(0.0) + 1e-9)),
            Scale::Log => (low.floor(), high.ceil().max(low.floor() + 1.0)),
            Scale::Nines => (0.0, high.max(1.0)),
        };
        Some(Axis { scale, low, high })
    }

    /// From 0 to 1.
    fn place(&self, value: f64) -> f64 {
        ((self.scale.turned(value) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn holds(&self, value: f64) -> bool {
        value.is_finite() && (self.scale != Scale::Log || value > 0.0)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        let mut ticks = Vec::new();
        match self.scale {
            Scale::Linear => {
                let rough = (self.high - self.low) / TICKS;
                let unit = 10_f64.powf(rough.log10().floor());
                let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * unit);
                let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
                let mut value = (self.low / step).ceil() * step;
                while value <= self.high + step * 1e-6 {
                    ticks.push((value, number(value)));
                    value += step;
                }
            }
            Scale::Log => {
                let mut power = self.low;
                while power <= self.high {
                    let value = 10_f64.powf(power);
                    ticks.push((value, number(value)));
                    power += 1.0;
                }
            }
            Scale::Nines => {
                let labels = ["0", "90", "99", "99.9", "99.99", "99.999", "99.9999"];
                for (nines, label) in (0..).zip(labels) {
                    if f64::from(nines) <= self.high + 0.01 {
                        let value = 100.0 * (1.0 - 10_f64.powi(-nines));
                        ticks.push((value, (*label).to_string()));
                    }
                }
            }
        }
        ticks
    }
}

impl Scale {
    /// A value as a distance along the axis.
    fn turned(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.max(f64::MIN_POSITIVE).log10(),
            Scale::Nines => -(1.0 - (value / 100.0).clamp(0.0, 1.0)).max(1e-7).log10(),
        }
    }
}

/// A number with k, M, G, and no more digits than a tick needs.
pub fn number(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = if scaled == 0.0 {
        0
    } else {
        (2.0 - scaled.abs().log10().floor()).clamp(0.0, 6.0) as usize
    };
    let text = format!("{scaled:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    } else {
        text
    };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>, x: Scale, y: Scale) -> String {
        let line = Line { name: "a<b".to_string(), points };
        Chart { title: "T", x: ("x", x), y: ("y", y), lines: vec![line] }.svg()
    }

    #[test]
    fn higher_values_stand_higher_and_later_ones_further_right() {
        let svg = chart(vec![(0.0, 1.0), (5.0, 100.0)], Scale::Linear, Scale::Log);
        assert!(svg.contains("points=\"76.0,258.0 744.0,34.0\""), "{svg}");
        assert!(svg.contains(">100</text>") && svg.contains("a&lt;b"), "{svg}");
    }

    #[test]
    fn nines_are_equally_far_apart() {
        let axis = Axis::over(Scale::Nines, [0.0, 99.9].into_iter()).expect("two values");
        let places = [0.0, 90.0, 99.0, 99.9].map(|value| axis.place(value));
        assert!((places[1] - 1.0 / 3.0).abs() < 1e-9 && (places[2] - 2.0 / 3.0).abs() < 1e-9);
        assert!((places[3] - 1.0).abs() < 1e-9 && places[0] == 0.0);
    }

    #[test]
    fn nothing_is_drawn_of_nothing_and_one_point_is_no_trouble() {
        assert_eq!(chart(vec![], Scale::Linear, Scale::Log), "");
        assert_eq!(chart(vec![(1.0, 0.0)], Scale::Linear, Scale::Log), "");
        assert!(chart(vec![(1.0, 0.0)], Scale::Linear, Scale::Linear).contains("<polyline"));
    }

    #[test]
    fn ticks_are_short() {
        let texts = [0.0, 0.05, 1.0, 12.5, 1000.0, 250_000.0, 3e9].map(number);
        assert_eq!(texts, ["0", "0.05", "1", "12.5", "1k", "250k", "3G"]);
    }
}
