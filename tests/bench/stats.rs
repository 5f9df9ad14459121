//! Medians, bootstrap intervals, and the table.

use std::fmt;

/// Measurements of one competitor, in one unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample(Vec<f64>);

impl Sample {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Quantile `q` in 0..=1 of the sample; NaN when it is empty.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        quantile(&mut self.0.clone(), q)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn min(&self) -> f64 {
        self.quantile(0.0)
    }

    /// Round by round, how often the peer's value this one's is; what was measured in one round stands at one place of both.
    fn ratios(&self, peer: &Sample) -> Sample {
        Sample(self.0.iter().zip(&peer.0).map(|(own, peer)| own / peer).collect())
    }

    /// 95 % interval of the median, by resampling (2,000 times, a fixed seed: same data, same interval).
    fn interval(&self) -> (f64, f64) {
        let mut draw = draws();
        let mut medians: Vec<f64> = (0..2000).map(|_| draw(&self.0)).collect();
        (quantile(&mut medians, 0.025), quantile(&mut medians, 0.975))
    }

    /// 95 % interval of the ratio of medians, by resampling both (2,000 times, a fixed seed: same data, same interval).
    pub(crate) fn ratio_interval(&self, peer: &Sample) -> (f64, f64) {
        let mut draw = draws();
        let mut ratios: Vec<f64> = (0..2000).map(|_| draw(&self.0) / draw(&peer.0)).collect();
        (quantile(&mut ratios, 0.025), quantile(&mut ratios, 0.975))
    }
}

/// The median of a sample drawn with replacement from another, each time another one.
fn draws() -> impl FnMut(&[f64]) -> f64 {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    move |from| {
        let mut resampled: Vec<f64> = (0..from.len())
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                from[(random % from.len() as u64) as usize]
            })
            .collect();
        quantile(&mut resampled, 0.5)
    }
}

/// What a bound is held against.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Figure {
    /// The ratio of the medians; the median where there is no peer.
    Medians,
    /// The median of the ratios, round by round.
    Rounds,
    /// The upper end of that median's 95 % interval.
    UpperEnd,
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    let at = q * (values.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    values[low] + (values[high] - values[low]) * (at - low as f64)
}

/// One line: a competitor, beside a peer where there is one, against a bound where there is one.
struct Row {
    name: String,
    unit: &'static str,
    sample: Sample,
    peer: Option<(String, Sample)>,
    bound: Option<f64>,
    of: Figure,
}

impl Row {
    /// The ratio where there is a peer, else the median.
    fn figure(&self) -> f64 {
        match &self.peer {
            Some((_, peer)) if self.of == Figure::Medians => self.sample.median() / peer.median(),
            Some((_, peer)) => self.sample.ratios(peer).median(),
            None => self.sample.median(),
        }
    }

    /// The ratio's 95 % interval.
    fn interval(&self, peer: &Sample) -> (f64, f64) {
        match self.of {
            Figure::Medians => self.sample.ratio_interval(peer),
            Figure::Rounds | Figure::UpperEnd => self.sample.ratios(peer).interval(),
        }
    }

    fn holds(&self) -> bool {
        let held = match &self.peer {
            Some((_, peer)) if self.of == Figure::UpperEnd => self.interval(peer).1,
            _ => self.figure(),
        };
        // A figure that is none holds no bound.
        self.bound.is_none_or(|bound| held <= bound)
    }
}

/// All lines of a run.
#[derive(Default)]
pub(crate) struct Table(Vec<Row>);

impl Table {
    /// A figure by itself.
    pub(crate) fn alone(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        sample: &Sample,
        bound: Option<f64>,
    ) {
        self.0.push(Row {
            name: name.into(),
            unit,
            sample: sample.clone(),
            peer: None,
            bound,
            of: Figure::Medians,
        });
    }

    /// A figure beside its peer; the bound is on the ratio of the medians.
    pub(crate) fn beside(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        sample: &Sample,
        peer: (&str, &Sample),
        bound: Option<f64>,
    ) {
        self.row(name.into(), unit, sample, peer, bound, Figure::Medians);
    }

    /// A figure beside a peer that was measured in the same rounds; the bound is on the median of the rounds' ratios.
    pub(crate) fn paired(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        sample: &Sample,
        peer: (&str, &Sample),
        bound: Option<f64>,
    ) {
        self.row(name.into(), unit, sample, peer, bound, Figure::Rounds);
    }

    /// As [`Table::paired`]; the bound is on the upper end of that median's 95 % interval.
    pub(crate) fn paired_upper(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        sample: &Sample,
        peer: (&str, &Sample),
        bound: Option<f64>,
    ) {
        self.row(name.into(), unit, sample, peer, bound, Figure::UpperEnd);
    }

    fn row(
        &mut self,
        name: String,
        unit: &'static str,
        sample: &Sample,
        peer: (&str, &Sample),
        bound: Option<f64>,
        of: Figure,
    ) {
        self.0.push(Row {
            name,
            unit,
            sample: sample.clone(),
            peer: Some((peer.0.to_string(), peer.1.clone())),
            bound,
            of,
        });
    }

    pub(crate) fn bounds_hold(&self) -> bool {
        self.0.iter().all(Row::holds)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<52} {:>4} {:>9} {:>9} {:>9}  {:<30} {:>22} {:>8} {:>8}",
            "what", "n", "median", "min", "p99", "beside: median (min)", "ratio (95 %)", "of mins", "bound"
        )?;
        for row in &self.0 {
            let (beside, ratio, minima) = match &row.peer {
                Some((name, peer)) => {
                    let (low, high) = row.interval(peer);
                    (
                        format!("{name} {:.2} ({:.2})", peer.median(), peer.min()),
                        format!("{:.3} ({low:.3}–{high:.3})", row.figure()),
                        format!("{:.3}", row.sample.min() / peer.min()),
                    )
                }
                None => (String::new(), String::new(), String::new()),
            };
            let bound = row.bound.map_or(String::new(), |b| {
                let of = if row.of == Figure::UpperEnd {
                    "upper end "
                } else {
                    ""
                };
                format!("{of}≤ {b}{}", if row.holds() { "" } else { " MISSED" })
            });
            writeln!(
                f,
                "{:<52} {:>4} {:>9.2} {:>9.2} {:>9.2}  {beside:<30} {ratio:>22} {minima:>8} {bound:>8}  {}",
                row.name,
                row.sample.0.len(),
                row.sample.median(),
                row.sample.min(),
                row.sample.quantile(0.99),
                row.unit
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: impl IntoIterator<Item = f64>) -> Sample {
        Sample(values.into_iter().collect())
    }

    #[test]
    fn what_a_machine_does_to_a_whole_round_is_not_the_container() {
        // The machine is up to four times as slow in some rounds; the container is 5 % slower in each.
        let host = sample((0..40).map(|n| 20.0 * f64::from(1 + n % 4)));
        let container = sample((0..40).map(|n| 21.0 * f64::from(1 + n % 4)));
        let mut table = Table::default();
        table.paired_upper("p50", "µs", &container, ("host", &host), Some(1.1));
        assert!(table.bounds_hold(), "{table}");
        let (low, high) = container.ratios(&host).interval();
        assert!((1.049..1.051).contains(&low) && (1.049..1.051).contains(&high));
        // By itself the spread of the rounds would say nothing.
        assert!(container.ratio_interval(&host).1 > 1.1);
    }

    #[test]
    fn an_upper_end_is_missed_where_the_median_is_not() {
        let host = sample([10.0; 40]);
        let container = sample((0..40).map(|n| if n % 2 == 0 { 8.0 } else { 12.0 }));
        let mut table = Table::default();
        table.paired("p50", "µs", &container, ("host", &host), Some(1.1));
        assert!(table.bounds_hold(), "{table}");
        table.paired_upper("p50", "µs", &container, ("host", &host), Some(1.1));
        assert!(!table.bounds_hold(), "{table}");
        let mut none = Table::default();
        none.paired_upper("p50", "µs", &sample([]), ("host", &host), Some(1.1));
        assert!(!none.bounds_hold(), "nothing was measured");
    }
}
