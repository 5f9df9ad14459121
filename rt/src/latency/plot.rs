//! A picture of histograms: SVG 1.1, one file, no script and nothing from elsewhere.
//!
//! Both axes are logarithmic, as cyclictest's usual plots are: the latency across, from the least to the greatest, and
//! upwards the share of wake-ups that came later. So the median, the tail and the maximum can be read off one curve.

use std::fmt::Write;

use super::Histogram;

/// Size of the picture, pixels.
const SIZE: (f64, f64) = (900.0, 520.0);
/// Around the plot: left, top, right, bottom.
const EDGE: (f64, f64, f64, f64) = (70.0, 50.0, 20.0, 55.0);
/// One colour a curve, told apart by the colour-blind too (Okabe and Ito's set).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000",
];

/// The axes' ranges: nanoseconds, and the least share drawn.
struct Axes {
    left: f64,
    right: f64,
    floor: f64,
}

impl Axes {
    fn of(curves: &[(String, Histogram)]) -> Axes {
        let filled = || curves.iter().map(|(_, h)| h).filter(|h| h.count() > 0);
        let least = filled().map(Histogram::min).min().unwrap_or(1).max(1);
        let most = filled().map(Histogram::max).max().unwrap_or(1000).max(least + 1);
        let count = filled().map(Histogram::count).max().unwrap_or(10).max(10);
        Axes {
            left: log10(least as f64).floor(),
            right: log10(most as f64).ceil(),
            floor: -log10(count as f64).ceil(),
        }
    }

    fn x(&self, ns: u64) -> f64 {
        let at = (log10(ns.max(1) as f64) - self.left) / (self.right - self.left);
        EDGE.0 + at.clamp(0.0, 1.0) * (SIZE.0 - EDGE.0 - EDGE.2)
    }

    fn y(&self, share: f64) -> f64 {
        let at = log10(share.max(1e-300)) / self.floor;
        EDGE.1 + at.clamp(0.0, 1.0) * (SIZE.1 - EDGE.1 - EDGE.3)
    }
}

/// The decimal logarithm of a normal number above 0, to 1e-12; a power of ten gives its exponent. The standard library's
/// would bring libm, one more library that is mapped for each process of berth, for the sake of a picture.
fn log10(x: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    let bits = x.to_bits();
    let exponent = ((bits & EXPONENT) >> 52) as f64 - 1023.0;
    let mantissa = f64::from_bits(bits & !EXPONENT | 1023 << 52);
    // ln m = 2 atanh((m - 1) / (m + 1)), and that is at most 1/3 for m below 2.
    let t = (mantissa - 1.0) / (mantissa + 1.0);
    let (mut power, mut sum) = (t, 0.0);
    for odd in (1..32).step_by(2) {
        sum += power / f64::from(odd);
        power *= t * t;
    }
    let exact = (exponent * std::f64::consts::LN_2 + 2.0 * sum) / std::f64::consts::LN_10;
    let whole = (exact + 0.5).floor();
    if (exact - whole).abs() < 1e-12 {
        whole
    } else {
        exact
    }
}

/// Draws named histograms.
#[must_use]
pub fn svg(title: &str, curves: &[(String, Histogram)]) -> String {
    let axes = Axes::of(curves);
    let (width, height) = SIZE;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = draw(&mut out, title, curves, &axes, (width, height));
    out
}

fn draw(
    out: &mut String,
    title: &str,
    curves: &[(String, Histogram)],
    axes: &Axes,
    (width, height): (f64, f64),
) -> std::fmt::Result {
    let (bottom, right) = (height - EDGE.3, width - EDGE.2);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"24\" font-size=\"15\">{}</text>",
        EDGE.0,
        escaped(title)
    )?;
    for power in whole(axes.left, axes.right) {
        let x = axes.x(10u64.saturating_pow(power.unsigned_abs()));
        writeln!(
            out,
            "<path d=\"M{x:.1} {} V{bottom}\" stroke=\"#ddd\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            EDGE.1,
            bottom + 18.0,
            time(power)
        )?;
    }
    for power in whole(axes.floor, 0.0) {
        let y = axes.y(10f64.powi(power));
        writeln!(
            out,
            "<path d=\"M{} {y:.1} H{right}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            EDGE.0,
            EDGE.0 - 6.0,
            y + 4.0,
            share(power)
        )?;
    }
    writeln!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">wake-up latency</text>\n\
         <text x=\"16\" y=\"{}\" text-anchor=\"middle\" transform=\"rotate(-90 16 {})\">share of wake-ups that came later</text>",
        f64::midpoint(EDGE.0, right),
        height - 12.0,
        f64::midpoint(EDGE.1, bottom),
        f64::midpoint(EDGE.1, bottom)
    )?;
    for (at, (name, histogram)) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        writeln!(
            out,
            "<path d=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>",
            curve(axes, histogram)
        )?;
        let y = EDGE.1 + 16.0 + 17.0 * at as f64;
        writeln!(
            out,
            "<path d=\"M{} {} h22\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}: \
             p50 {}, p99 {}, max {} µs</text>",
            right - 26.0,
            y - 4.0,
            right - 32.0,
            escaped(name),
            micros(histogram.quantile(0.5)),
            micros(histogram.quantile(0.99)),
            micros(histogram.max())
        )?;
    }
    out.push_str("</svg>\n");
    Ok(())
}

/// Steps down at each bucket's end: what is left came later.
fn curve(axes: &Axes, histogram: &Histogram) -> String {
    let total = histogram.count();
    if total == 0 {
        return "M0 0".into();
    }
    let mut path = format!("M{:.1} {:.1}", axes.x(histogram.min()), axes.y(1.0));
    let mut left = total;
    for (_, high, count) in histogram.buckets() {
        left -= count;
        let x = axes.x(high.min(histogram.max()));
        let y = axes.y(left as f64 / total as f64);
        let _ = write!(path, " H{x:.1} V{y:.1}");
    }
    path
}

/// The whole numbers from `from` to `to`.
fn whole(from: f64, to: f64) -> std::ops::RangeInclusive<i32> {
    from as i32..=to as i32
}

/// 10^power nanoseconds.
fn time(power: i32) -> String {
    let (unit, less) = match power {
        ..3 => ("ns", 0),
        3..6 => ("µs", 3),
        6..9 => ("ms", 6),
        _ => ("s", 9),
    };
    format!("{} {unit}", 10u64.saturating_pow((power - less).unsigned_abs()))
}

/// 10^power of everything.
fn share(power: i32) -> String {
    match power {
        0 => "all".into(),
        _ => format!("1 in 10{}", superscript(power.unsigned_abs())),
    }
}

fn superscript(number: u32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let text = number.to_string();
    text.bytes()
        .map(|b| DIGITS[usize::from(b.saturating_sub(b'0')) % 10])
        .collect()
}

fn micros(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1000.0)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_agree_with_the_standard_librarys() {
        for exponent in -15..19 {
            let power = 10f64.powi(exponent);
            assert_eq!(log10(power), f64::from(exponent));
            for factor in [1.000_1, 1.7, 2.0, 3.3, 9.99] {
                let x = power * factor;
                assert!((log10(x) - x.log10()).abs() < 1e-12, "{x}");
            }
        }
        assert!((log10(1e-300) + 300.0).abs() < 1e-9);
    }

    #[test]
    fn every_curve_is_drawn_within_the_frame() {
        let mut quick = Histogram::new();
        (1..2000).for_each(|i| quick.add(3_000 + i * 7));
        let mut slow = Histogram::new();
        slow.add(12_000_000);
        let curves = [
            ("host <1>".to_owned(), quick),
            ("container".to_owned(), slow),
            ("nothing".to_owned(), Histogram::new()),
        ];
        let picture = svg("a & b", &curves);
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        assert!(
            picture.contains("host &lt;1&gt;: p50 10.0,") && picture.contains("a &amp; b"),
            "{picture}"
        );
        assert!(picture.contains("max 12000.0 µs") && picture.contains(">10 ms<"));
        for number in picture
            .split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))
            .filter_map(|n| n.parse::<f64>().ok())
            .filter(|n| n.fract() != 0.0)
        {
            assert!((-100.0..=12_000.0).contains(&number), "{number}");
        }
        let steps = picture.lines().find(|l| l.contains(COLOURS[0])).unwrap();
        assert!(steps.matches(" H").count() > 50, "{steps}");
    }
}
