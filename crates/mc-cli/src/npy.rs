//! numpy's format of a matrix (numpy.lib.format, version 1.0). Knows no vectors' meaning.

/// What a .npy file of version 1 begins with: 128 bytes, whatever the numbers.
pub(crate) fn header(rows: u64, width: usize) -> Vec<u8> {
    const LENGTH: usize = 128;
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((LENGTH - 10) as u16).to_le_bytes());
    header.extend(dict.bytes());
    header.resize(LENGTH - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_header_has_one_size_and_says_the_shape() {
        for rows in [0, 7, u64::MAX] {
            let header = super::header(rows, 1024);
            assert_eq!((header.len(), header[127]), (128, b'\n'));
            assert!(String::from_utf8_lossy(&header).contains(&format!("'shape': ({rows}, 1024), }}")));
        }
    }
}
