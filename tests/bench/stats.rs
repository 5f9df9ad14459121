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

    /// 95 % interval of the ratio of medians, by resampling both (2,000 times, a fixed seed: same data, same interval).
    pub(crate) fn ratio_interval(&self, peer: &Sample) -> (f64, f64) {
        let mut random = 0x9E37_79B9_7F4A_7C15_u64;
        let mut draw = |from: &[f64]| -> f64 {
            let mut resampled: Vec<f64> = (0..from.len())
                .map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    from[(random % from.len() as u64) as usize]
                })
                .collect();
            quantile(&mut resampled, 0.5)
        };
        let mut ratios: Vec<f64> = (0..2000).map(|_| draw(&self.0) / draw(&peer.0)).collect();
        (quantile(&mut ratios, 0.025), quantile(&mut ratios, 0.975))
    }
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
}

impl Row {
    /// What the bound is on: the ratio where there is a peer, else the median.
    fn figure(&self) -> f64 {
        match &self.peer {
            Some((_, peer)) => self.sample.median() / peer.median(),
            None => self.sample.median(),
        }
    }

    fn holds(&self) -> bool {
        self.bound.is_none_or(|bound| self.figure() <= bound)
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
        let peer = Some((peer.0.to_string(), peer.1.clone()));
        self.0.push(Row {
            name: name.into(),
            unit,
            sample: sample.clone(),
            peer,
            bound,
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
                    let (low, high) = row.sample.ratio_interval(peer);
                    (
                        format!("{name} {:.2} ({:.2})", peer.median(), peer.min()),
                        format!("{:.3} ({low:.3}–{high:.3})", row.figure()),
                        format!("{:.3}", row.sample.min() / peer.min()),
                    )
                }
                None => (String::new(), String::new(), String::new()),
            };
            let bound = row.bound.map_or(String::new(), |b| {
                format!("≤ {b}{}", if row.holds() { "" } else { " MISSED" })
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
