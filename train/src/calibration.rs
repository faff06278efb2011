//! From score to probability: Platt scaling (Platt 1999) on the dev pairs.

use models::student::Calibration;

/// A pair to fit on.
#[derive(Debug, Clone, Copy)]
pub struct JudgedScore {
    /// Its score less c(q).
    pub score: f32,
    /// Whether the document is relevant.
    pub relevant: bool,
    /// For how many pairs it stands.
    pub weight: f32,
}

/// Newton steps; the problem is convex with two unknowns and settles in about ten.
const ITERATIONS: usize = 50;

/// Fits `P(relevant) = sigmoid(scale * score + bias)` by maximum likelihood, with Platt's smoothed targets so that
/// separable data stays finite. `None` if all pairs are of one kind.
pub fn fit(pairs: &[JudgedScore]) -> Option<Calibration> {
    let weights = |relevant| {
        pairs.iter().filter(|pair| pair.relevant == relevant).map(|pair| f64::from(pair.weight)).sum::<f64>()
    };
    let (positives, negatives) = (weights(true), weights(false));
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let (high, low) = ((positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0));
    // Scores are centred and scaled first: Newton's steps are then well behaved.
    let weighted = |of: &dyn Fn(f64) -> f64| {
        let sum = pairs.iter().map(|pair| f64::from(pair.weight) * of(f64::from(pair.score))).sum::<f64>();
        sum / (positives + negatives)
    };
    let mean = weighted(&|score| score);
    let deviation = weighted(&|score| (score - mean).powi(2)).sqrt().max(1e-9);
    let (mut a, mut b) = (0.0f64, (positives / negatives).ln());
    for _ in 0..ITERATIONS {
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (0.0, 0.0, 1e-9, 0.0, 1e-9);
        for pair in pairs {
            let x = (f64::from(pair.score) - mean) / deviation;
            let p = 1.0 / (1.0 + (-(a * x + b)).exp());
            let error = f64::from(pair.weight) * (p - if pair.relevant { high } else { low });
            let weight = f64::from(pair.weight) * p * (1.0 - p);
            ga += error * x;
            gb += error;
            haa += weight * x * x;
            hab += weight * x;
            hbb += weight;
        }
        let determinant = haa * hbb - hab * hab;
        let (da, db) = ((hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant);
        // A long step in a flat region would overshoot for good.
        let shrink = (2.0 / (da.abs() + db.abs())).min(1.0);
        a -= da * shrink;
        b -= db * shrink;
        if da.abs() + db.abs() < 1e-10 {
            break;
        }
    }
    let scale = a / deviation;
    Some(Calibration { scale: scale as f32, bias: (b - scale * mean) as f32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(score: f32, relevant: bool) -> JudgedScore {
        JudgedScore { score, relevant, weight: 1.0 }
    }

    /// Scores drawn from a known curve must give that curve back: a robot acts on these probabilities.
    #[test]
    fn finds_the_curve_that_made_the_labels() {
        let mut pairs = Vec::new();
        for i in 0..400 {
            let score = i as f32 / 20.0 - 10.0;
            let p = 1.0 / (1.0 + (-(0.8 * score - 2.0)).exp());
            let positives = (p * 100.0).round() as usize;
            pairs.extend((0..100).map(|j| pair(score, j < positives)));
        }
        let found = fit(&pairs).unwrap();
        assert!((found.scale - 0.8).abs() < 0.03 && (found.bias + 2.0).abs() < 0.06, "{found:?}");
        // One for many says what the many say.
        let mut fewer: Vec<JudgedScore> = Vec::new();
        for pair in &pairs {
            match fewer.iter_mut().find(|one| one.score == pair.score && one.relevant == pair.relevant) {
                Some(one) => one.weight += 1.0,
                None => fewer.push(*pair),
            }
        }
        let weighted = fit(&fewer).unwrap();
        assert!((found.scale - weighted.scale).abs() + (found.bias - weighted.bias).abs() < 1e-5);
        assert!(fit(&[pair(1.0, true)]).is_none());
        let separable = fit(&[pair(1.0, true), pair(-1.0, false)]).unwrap();
        assert!(separable.scale.is_finite() && separable.scale > 0.0);
    }
}
