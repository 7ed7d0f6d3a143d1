//! Runs a filter as the kernel would, for tests.

/// `struct seccomp_data` of linux/seccomp.h, without the instruction pointer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub number: u32,
    pub arch: u32,
    pub arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 if offset.is_multiple_of(4) => {
                let [low, high] = halves(self.arguments[usize::try_from((offset - 16) / 8).unwrap()]);
                if offset.is_multiple_of(8) { low } else { high }
            }
            _ => panic!("a load from {offset}"),
        }
    }
}

fn halves(value: u64) -> [u32; 2] {
    [u32::try_from(value & 0xFFFF_FFFF).unwrap(), u32::try_from(value >> 32).unwrap()]
}

/// What `program` returns. Panics at what the kernel's check would refuse.
pub(super) fn run(program: &[u8], call: &Call) -> u32 {
    let (program, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty() && program.len() <= 4096);
    let mut accumulator = 0;
    let mut at = 0;
    loop {
        let [a, b, if_true, if_false, c, d, e, f] = program[at];
        let (code, k) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes([c, d, e, f]));
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { if_true } else { if_false });
        match code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => jump(accumulator == k),
            0x25 => jump(accumulator > k),
            0x35 => jump(accumulator >= k),
            0x45 => jump(accumulator & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}
