//! Which elements of a weight are kept, a bit each.

/// A bit for every element of a weight, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Bit `i % 64` of word `i / 64` is element `i`; bits beyond the last element are zero.
    words: Vec<u64>,
    len: usize,
}

impl Mask {
    pub(crate) fn from_words(words: Vec<u64>, len: usize) -> Self {
        debug_assert_eq!(words.len(), len.div_ceil(64));
        Self { words, len }
    }

    /// How many elements the weight has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the weight has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many elements are kept.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether element `index` is kept.
    ///
    /// # Panics
    ///
    /// If there is no such element.
    pub fn get(&self, index: usize) -> bool {
        assert!(index < self.len, "element {index} of {}", self.len);
        self.words[index / 64] >> (index % 64) & 1 == 1
    }

    /// Every element in turn.
    pub fn iter(&self) -> impl Iterator<Item = bool> {
        (0..self.len).map(|index| self.get(index))
    }

    /// The bits, 64 elements a word, the first in the lowest.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

impl FromIterator<bool> for Mask {
    fn from_iter<I: IntoIterator<Item = bool>>(kept: I) -> Self {
        let (mut words, mut len) = (Vec::new(), 0);
        for kept in kept {
            if len % 64 == 0 {
                words.push(0);
            }
            if let Some(word) = words.last_mut() {
                *word |= u64::from(kept) << (len % 64);
            }
            len += 1;
        }
        Self { words, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_elements() {
        let kept: Vec<bool> = (0..130).map(|index| index % 3 == 0).collect();
        let mask: Mask = kept.iter().copied().collect();
        assert_eq!((mask.len(), mask.count(), mask.words().len()), (130, 44, 3));
        assert!(mask.iter().eq(kept));
        assert!(mask.get(129) && !mask.get(128));
    }
}
