//! Two sides measured in turns: the ratio of a quantile, with a 95 % bootstrap interval over the rounds.
//!
//! Rounds are drawn in pairs, as they were measured: what the machine did in a round fell on both sides of it.

use serde::{Deserialize, Serialize};

use super::Histogram;

/// How often the rounds are drawn anew.
const DRAWS: usize = 2000;
/// Where the drawing begins: the same rounds give the same interval.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;

/// One side's quantile over the other's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ratio {
    /// Which quantile, 0 to 1.
    pub quantile: f64,
    /// The median over the rounds of this side's quantile, nanoseconds.
    pub this_ns: f64,
    /// That of the other side.
    pub other_ns: f64,
    /// The one over the other.
    pub ratio: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The ratio of `this` to `other`, round by round. `None` where a side has no round, or nothing was measured in one.
#[must_use]
pub fn ratio(this: &[Histogram], other: &[Histogram], quantile: f64) -> Option<Ratio> {
    let pairs: Vec<(f64, f64)> = this
        .iter()
        .zip(other)
        .filter(|(t, o)| t.count() > 0 && o.count() > 0)
        .map(|(t, o)| (t.quantile(quantile) as f64, o.quantile(quantile).max(1) as f64))
        .collect();
    if pairs.is_empty() || pairs.len() != this.len().max(other.len()) {
        return None;
    }
    let of = |pairs: &[(f64, f64)]| {
        let (mut this, mut other): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
        (sorted_quantile(&mut this, 0.5), sorted_quantile(&mut other, 0.5))
    };
    let (this_ns, other_ns) = of(&pairs);
    let mut random = SEED;
    let mut draw = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        pairs[usize::try_from(random % pairs.len() as u64).unwrap_or(0)]
    };
    let mut ratios: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let drawn: Vec<(f64, f64)> = (0..pairs.len()).map(|_| draw()).collect();
            let (this, other) = of(&drawn);
            this / other
        })
        .collect();
    Some(Ratio {
        quantile,
        this_ns,
        other_ns,
        ratio: this_ns / other_ns,
        low: sorted_quantile(&mut ratios, 0.025),
        high: sorted_quantile(&mut ratios, 0.975),
    })
}

/// The quantile of what is not empty, between neighbours where it falls between two.
fn sorted_quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = q * (values.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    values[low] + (values[high] - values[low]) * (at - low as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(ns: u64) -> Histogram {
        let mut h = Histogram::new();
        (0..99).for_each(|i| h.add(ns + i % 3));
        h
    }

    #[test]
    fn the_interval_holds_the_ratio_and_grows_with_the_noise() {
        let host: Vec<Histogram> = [1000, 1010, 990, 1000, 1005, 995].map(round).to_vec();
        let twice: Vec<Histogram> = [2000, 2020, 1980, 2000, 2010, 1990].map(round).to_vec();
        let noisy: Vec<Histogram> = [2000, 9000, 500, 2000, 4000, 1000].map(round).to_vec();
        let calm = ratio(&twice, &host, 0.5).unwrap();
        assert!((calm.ratio - 2.0).abs() < 0.05, "{calm:?}");
        assert!(calm.low <= calm.ratio && calm.ratio <= calm.high, "{calm:?}");
        let wide = ratio(&noisy, &host, 0.5).unwrap();
        assert!(wide.high - wide.low > 5.0 * (calm.high - calm.low), "{wide:?}");
        let same = ratio(&host, &host, 0.99).unwrap();
        assert_eq!((same.ratio, same.low, same.high), (1.0, 1.0, 1.0));
        assert_eq!(
            ratio(&noisy, &host, 0.5),
            ratio(&noisy, &host, 0.5),
            "the same twice"
        );
    }

    #[test]
    fn without_rounds_there_is_no_ratio() {
        let one = [round(5)];
        assert_eq!(ratio(&[], &[], 0.5), None);
        assert_eq!(ratio(&one, &[], 0.5), None);
        assert_eq!(ratio(&one, &[Histogram::new()], 0.5), None);
    }
}
