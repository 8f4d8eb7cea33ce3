//! What this CPU has, and what it does faster.
//!
//! What is faster is decided by the maker and the kind of CPU, not by a measurement at the start: a busy machine must not change the
//! numbers of a run (docs/adr/0008-the-faster-arithmetic.md).

/// Whether it has AVX2, with the multiply-add of `f32` (FMA), as all with AVX-512 have.
#[inline(always)]
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Whether it has AVX-512.
#[inline(always)]
pub(crate) fn has_avx512() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Whether it widens `f16` in one instruction.
#[inline(always)]
pub(crate) fn widens_f16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = has_avx2() && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Whether it multiplies `bf16` in hardware.
pub(crate) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = has_avx512() && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
}

/// Whether it multiplies `bf16` faster than `f32`: AMD's Zen 5 starts as many of either, Intel's Golden Cove a quarter as many.
pub(crate) fn multiplies_bf16_faster() -> bool {
    has_bf16() && KIND.is_some_and(|kind| kind.amd)
}

/// Whether it starts as many `vpmaddwd` as multiply-adds of AVX2, and so multiplies pairs of 16-bit integers faster than `f32`: AMD since
/// Zen 3, Intel since Skylake. Zen 1 and 2, Haswell and Broadwell have one place for it and two for the other. Not with AVX-512, with
/// which twice as many `f32` are multiplied at once.
pub(crate) fn multiplies_integers_faster() -> bool {
    !has_avx512() && KIND.is_some_and(Kind::starts_as_many_integers)
}

#[derive(Clone, Copy)]
struct Kind {
    /// AMD, or who builds its designs under licence; otherwise Intel.
    amd: bool,
    family: u32,
    model: u32,
}

impl Kind {
    fn starts_as_many_integers(self) -> bool {
        /// Of Intel's family 6.
        const HASWELL_AND_BROADWELL: [u32; 8] = [0x3C, 0x3F, 0x45, 0x46, 0x3D, 0x47, 0x4F, 0x56];
        if self.amd {
            self.family >= 0x19
        } else {
            self.family >= 6 && !(self.family == 6 && HASWELL_AND_BROADWELL.contains(&self.model))
        }
    }
}

/// `None` of other makers.
static KIND: std::sync::LazyLock<Option<Kind>> = std::sync::LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    {
        let [maker, signature] = [0, 1].map(std::arch::x86_64::__cpuid);
        let maker = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
        let (amd, intel) = ([b"AuthenticAMD", b"HygonGenuine"], b"GenuineIntel");
        let is = |name: &[u8; 12]| maker.as_flattened() == name;
        let (family, model) = (signature.eax >> 8 & 0xF, signature.eax >> 4 & 0xF);
        let family = if family == 15 { family + (signature.eax >> 20 & 0xFF) } else { family };
        let model = model | (signature.eax >> 16 & 0xF) << 4;
        let amd = amd.into_iter().any(is);
        (amd || is(intel)).then_some(Kind { amd, family, model })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_start_as_many_integers() {
        let is = |amd, family, model| Kind { amd, family, model }.starts_as_many_integers();
        // Zen 2, Zen 3, and Hygon's Zen 1.
        assert!(!is(true, 0x17, 0x31) && is(true, 0x19, 0x01) && !is(true, 0x18, 0));
        // Haswell, Broadwell, Skylake and Alder Lake.
        assert!(!is(false, 6, 0x3C) && !is(false, 6, 0x4F) && is(false, 6, 0x5E) && is(false, 6, 0x97));
    }

    /// Where the system says what CPU it is.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_kind_is_what_the_system_says() {
        let Ok(info) = std::fs::read_to_string("/proc/cpuinfo") else { return };
        let value = |name: &str| {
            let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split(':').nth(1)).map(|value| value.trim().to_string())
        };
        let maker = value("vendor_id");
        let amd = ["AuthenticAMD", "HygonGenuine"].iter().any(|name| maker.as_deref() == Some(*name));
        assert_eq!(KIND.is_some(), amd || maker.as_deref() == Some("GenuineIntel"));
        if let Some(kind) = *KIND {
            assert_eq!(kind.amd, amd);
            assert_eq!(value("cpu family"), Some(kind.family.to_string()));
            assert_eq!(value("model"), Some(kind.model.to_string()));
        }
        let has = |flag| info.split_whitespace().any(|has| has == flag);
        assert_eq!((has_avx512(), has_bf16()), (has("avx512f"), has("avx512_bf16")));
        assert_eq!(has_avx2(), has("avx2") && has("fma"));
        assert!(has_avx2() || !has_avx512());
    }
}
