//! int8 and int4 weights: a whole number for each weight and a scale for each row (`rows`) or block (`blocks`), rounded to
//! nearest or, with a calibration, by GPTQ (`gptq`). `calibrate` collects the activations that GPTQ and SmoothQuant
//! (`smoothquant`) need, `calibrated` rounds each weight by them once; `rotation` and `basis` remove outlier channels from
//! the residual stream; `mixed` names the layers that get a higher precision. The same input always gives the same bytes.

pub mod basis;
pub mod blocks;
pub mod calibrate;
pub mod calibrated;
pub mod gptq;
pub mod mixed;
pub mod report;
pub mod rotation;
pub mod rows;
mod scale;
pub mod smoothquant;
