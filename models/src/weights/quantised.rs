//! Recognising weights in few bits by how the usual programs store them.

use super::{DType, Weights, WeightsError};

/// Ends of tensor names that only these programs write, and what each is called. Those of several programs stand last.
const MARKS: &[(&str, &str)] = &[
    (".absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".g_idx", "GPTQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".qzeros", "GPTQ or AWQ"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_scale", "compressed-tensors or FP8"),
    ("_blocks", "MXFP4"),
    (".scales", "MLX or another program"),
];

impl Weights {
    /// Refuses weights in few bits by what they are. `said` is what config.json calls them
    /// (`quantization_config.quant_method`), if anything: whole weights are whole, whatever it says.
    pub fn check_whole(&self, said: Option<&str>) -> Result<(), WeightsError> {
        let marked = MARKS.iter().find_map(|(end, how)| {
            let name = self.names().find(|name| name.ends_with(end))?;
            Some((name.to_owned(), (*how).to_owned()))
        });
        let of_kind = || {
            let known = |dtype| matches!(dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16);
            let few = |name: &&str| {
                name.ends_with(".weight") && self.tensor(name).is_ok_and(|(_, info)| !known(info.dtype))
            };
            let name = self.names().find(few)?;
            let (_, info) = self.tensor(name).ok()?;
            let how = match info.dtype {
                DType::F8_E4M3 | DType::F8_E5M2 => "FP8".to_owned(),
                other => format!("numbers of kind {other}"),
            };
            Some((name.to_owned(), how))
        };
        let Some((name, how)) = marked.or_else(of_kind) else { return Ok(()) };
        let how = said.map_or(how, str::to_owned);
        Err(WeightsError::Quantised { file: self.shard(&name)?.file.clone(), how, name })
    }
}
