//! Causal attention inside each sequence of a packed batch, as one operation with a gradient of its own. Neither pass ever has more
//! than a bounded number of scores: sequences of similar length are computed together, and long ones some rows at a time.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, DType, Result, Tensor};

use super::{
    device::Place,
    ops::{self, Two},
};

/// Scores that exist at once, unless one row of a sequence has more.
pub(super) const SCORES: usize = 1 << 24;

/// Marks a place that holds zeros; candle's selections know it.
pub(super) const NOTHING: u32 = u32::MAX;

/// Where the rows of a packed batch lie, for [`attention`].
#[derive(Clone, Debug)]
pub(super) struct Documents {
    pieces: Vec<Piece>,
    /// The place of each packed row in the rows of all pieces, one piece after another.
    places: Tensor,
}

/// Sequences that are computed together, padded to the longest of them.
#[derive(Clone, Debug)]
struct Piece {
    /// The packed row at each place [sequences · longest]; [`NOTHING`] after the end of a sequence.
    rows: Tensor,
    sequences: usize,
    longest: usize,
    tiles: Vec<Tile>,
}

/// Rows of every sequence of a piece whose scores exist at once.
#[derive(Clone, Debug)]
struct Tile {
    first: usize,
    rows: usize,
    /// 0 up to a row's own position, −∞ after it: [rows, first + rows].
    mask: Tensor,
}

/// Returns the sequences of each piece, by their lengths: longest first, each at least half as long as the first of its piece. A piece
/// of several sequences has at most `most` scores of `heads` heads. Sequences without rows are left out.
fn group(lengths: &[usize], heads: usize, most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).filter(|sequence| lengths[*sequence] > 0).collect();
    order.sort_by_key(|sequence| std::cmp::Reverse(lengths[*sequence]));
    let mut pieces: Vec<Vec<usize>> = Vec::new();
    for sequence in order {
        let fits = |piece: &[usize]| {
            let longest = lengths[piece[0]];
            2 * lengths[sequence] >= longest && (piece.len() + 1) * heads * longest * longest <= most
        };
        match pieces.last_mut().filter(|piece| fits(piece)) {
            Some(piece) => piece.push(sequence),
            None => pieces.push(vec![sequence]),
        }
    }
    pieces
}

/// Returns the first row and the number of rows of each tile of a piece.
fn tiles(sequences: usize, longest: usize, heads: usize, most: usize) -> Vec<(usize, usize)> {
    let rows = (most / (sequences * heads * longest)).clamp(1, longest);
    (0..longest).step_by(rows).map(|first| (first, rows.min(longest - first))).collect()
}

impl Documents {
    /// Finds the pieces of the sequences between `bounds`, the first row of each and then the number of rows, for `heads` query heads.
    /// At most `most` scores exist at once, but those of one row at least.
    pub(super) fn new(place: &Place, bounds: &[usize], heads: usize, most: usize) -> Result<Self> {
        let starts: Vec<(usize, usize)> = bounds.windows(2).map(|pair| (pair[0], pair[1] - pair[0])).collect();
        let lengths: Vec<usize> = starts.iter().map(|(_, length)| *length).collect();
        let mut places = vec![NOTHING; bounds.last().copied().unwrap_or(0)];
        let (mut pieces, mut begun) = (Vec::new(), 0);
        // Sequences of equal lengths have equal masks.
        let mut masks: BTreeMap<(usize, usize), Tensor> = BTreeMap::new();
        let mut mask = |rows: usize, columns: usize| -> Result<Tensor> {
            if let Some(known) = masks.get(&(rows, columns)) {
                return Ok(known.clone());
            }
            let mask = ops::causal(rows, columns, &place.device)?;
            masks.insert((rows, columns), mask.clone());
            Ok(mask)
        };
        for members in group(&lengths, heads, most) {
            let longest = lengths[members[0]];
            let mut rows = vec![NOTHING; members.len() * longest];
            for (member, sequence) in members.iter().enumerate() {
                let (start, length) = starts[*sequence];
                for at in 0..length {
                    rows[member * longest + at] = (start + at) as u32;
                    places[start + at] = (begun + member * longest + at) as u32;
                }
            }
            begun += rows.len();
            let tiles = tiles(members.len(), longest, heads, most).into_iter();
            let tiles = tiles.map(|(first, rows)| Ok(Tile { first, rows, mask: mask(rows, first + rows)? }));
            pieces.push(Piece {
                rows: place.indices(&rows)?,
                sequences: members.len(),
                longest,
                tiles: tiles.collect::<Result<_>>()?,
            });
        }
        Ok(Self { pieces, places: place.indices(&places)? })
    }

    /// Joins numbers of each piece [heads, places, width] to those of the packed rows [heads, rows, width].
    fn join(&self, pieces: &[Tensor]) -> Result<Tensor> {
        Tensor::cat(pieces, 1)?.index_select(&self.places, 1)
    }
}

impl Piece {
    /// Selects the rows of queries, or of what has their shape: [heads, rows, width] → [pairs, heads of a group, longest, width]. A pair
    /// is a key-value head and a sequence.
    fn queries(&self, x: &Tensor, shared: usize) -> Result<Tensor> {
        let (heads, _, width) = x.dims3()?;
        let (sequences, longest) = (self.sequences, self.longest);
        let x = x.index_select(&self.rows, 1)?.reshape((shared, heads / shared, sequences, longest, width))?;
        x.transpose(1, 2)?.contiguous()?.reshape((shared * sequences, heads / shared, longest, width))
    }

    /// Undoes [`queries`](Self::queries), up to the order of rows: → [heads, sequences · longest, width].
    fn of_queries(&self, x: &Tensor, shared: usize) -> Result<Tensor> {
        let (_, group, longest, width) = x.dims4()?;
        let x = x.reshape((shared, self.sequences, group, longest, width))?.transpose(1, 2)?.contiguous()?;
        x.reshape((shared * group, self.sequences * longest, width))
    }

    /// Selects the rows of keys and values: [key-value heads, rows, 2 · width] → twice [pairs, longest, width].
    fn keys_and_values(&self, kv: &Tensor) -> Result<[Tensor; 2]> {
        let (shared, _, both) = kv.dims3()?;
        let kv = kv.index_select(&self.rows, 1)?.reshape((shared * self.sequences, self.longest, both))?;
        Ok([kv.narrow(2, 0, both / 2)?.contiguous()?, kv.narrow(2, both / 2, both / 2)?.contiguous()?])
    }

    /// Returns the attention [heads, sequences · longest, width] of the piece.
    fn forward(&self, q: &Tensor, kv: &Tensor) -> Result<Tensor> {
        let (shared, q) = (kv.dim(0)?, self.queries(q, kv.dim(0)?)?);
        let [k, v] = self.keys_and_values(kv)?;
        let outs = self.tiles.iter().map(|tile| {
            let out = tile.probabilities(&tile.rows_of(&q)?, &k)?.matmul(&tile.seen(&v)?)?;
            tile.shaped(&out, &q)
        });
        self.of_queries(&Tensor::cat(&outs.collect::<Result<Vec<_>>>()?, 2)?, shared)
    }

    /// Returns the gradients by the queries [heads, sequences · longest, width], and by keys and values
    /// [key-value heads, sequences · longest, 2 · width].
    fn backward(&self, q: &Tensor, kv: &Tensor, out: &Tensor, gradient: &Tensor) -> Result<[Tensor; 2]> {
        let (shared, dtype) = (kv.dim(0)?, q.dtype());
        let [q, out, gradient] = [q, out, gradient].map(|x| self.queries(x, shared));
        let (q, out, gradient) = (q?, out?, gradient?);
        let [k, v] = self.keys_and_values(kv)?;
        let scale = 1.0 / (q.dim(D::Minus1)? as f64).sqrt();
        let (mut of_queries, mut of_keys, mut of_values) = (Vec::new(), None, None);
        for tile in &self.tiles {
            let (query, out, gradient) = (tile.rows_of(&q)?, tile.rows_of(&out)?, tile.rows_of(&gradient)?);
            let p = tile.probabilities(&query, &k)?;
            let along = (&gradient * out)?.to_dtype(DType::F32)?.sum_keepdim(D::Minus1)?.to_dtype(dtype)?;
            let of_p = gradient.matmul(&tile.seen(&v)?.t()?)?;
            let of_scores = (of_p.broadcast_sub(&along)?.mul(&p)? * scale)?;
            of_queries.push(tile.shaped(&of_scores.matmul(&tile.seen(&k)?)?, &q)?);
            self.add(&mut of_keys, &of_scores.t()?.matmul(&query)?)?;
            self.add(&mut of_values, &p.t()?.matmul(&gradient)?)?;
        }
        let of_kv: Vec<Tensor> = [of_keys, of_values].into_iter().flatten().collect();
        let (width, places) = (q.dim(D::Minus1)?, self.sequences * self.longest);
        let of_kv = Tensor::cat(&of_kv, 2)?.to_dtype(dtype)?.reshape((shared, places, 2 * width))?;
        Ok([self.of_queries(&Tensor::cat(&of_queries, 2)?, shared)?, of_kv])
    }

    /// Adds the first rows of a gradient [pairs, seen, width] to a sum over tiles [pairs, longest, width] in `f32`.
    fn add(&self, sum: &mut Option<Tensor>, part: &Tensor) -> Result<()> {
        let part = part.to_dtype(DType::F32)?.pad_with_zeros(1, 0, self.longest - part.dim(1)?)?;
        *sum = Some(match sum.take() {
            None => part,
            Some(sum) => (sum + part)?,
        });
        Ok(())
    }
}

impl Tile {
    /// [pairs, heads of a group, longest, width] → [pairs, heads of a group · rows, width] of the tile's rows.
    fn rows_of(&self, x: &Tensor) -> Result<Tensor> {
        let (pairs, group, _, width) = x.dims4()?;
        x.narrow(2, self.first, self.rows)?.contiguous()?.reshape((pairs, group * self.rows, width))
    }

    /// Undoes [`rows_of`](Self::rows_of) of what has the shape of `like`: → [pairs, heads of a group, rows, width].
    fn shaped(&self, x: &Tensor, like: &Tensor) -> Result<Tensor> {
        let (pairs, group, _, width) = like.dims4()?;
        x.reshape((pairs, group, self.rows, width))
    }

    /// Returns the keys or values up to the last of the tile's rows.
    fn seen(&self, x: &Tensor) -> Result<Tensor> {
        x.narrow(1, 0, self.first + self.rows)?.contiguous()
    }

    /// Returns the probabilities [pairs, heads of a group · rows, first + rows] of the tile's queries.
    fn probabilities(&self, query: &Tensor, k: &Tensor) -> Result<Tensor> {
        ops::probabilities(query, &self.seen(k)?, &self.mask)
    }
}

/// Causal attention of queries [heads, rows, width] over keys and values [key-value heads, rows, 2 · width], which hold a row's key, then
/// its value: each row attends to the rows of its own sequence up to itself. Returns [heads, rows, width]. The backward pass computes the
/// probabilities again instead of keeping them.
pub(super) fn attention(q: &Tensor, kv: &Tensor, documents: &Arc<Documents>) -> Result<Tensor> {
    let (q, kv) = (q.contiguous()?, kv.contiguous()?);
    let (query, both) = (q.detach(), kv.detach());
    let outs: Result<Vec<_>> = documents.pieces.iter().map(|piece| piece.forward(&query, &both)).collect();
    let out = documents.join(&outs?)?;
    let documents = documents.clone();
    let backward = move |q: &Tensor, kv: &Tensor, out: &Tensor, gradient: &Tensor| {
        let gradient = gradient.contiguous()?;
        let (mut of_q, mut of_kv) = (Vec::new(), Vec::new());
        for piece in &documents.pieces {
            let [queries, keys] = piece.backward(q, kv, out, &gradient)?;
            of_q.push(queries);
            of_kv.push(keys);
        }
        Ok((documents.join(&of_q)?, documents.join(&of_kv)?))
    };
    q.apply_op3(&kv, &out, Two { name: "attention", backward })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn similar_lengths_are_computed_together_within_the_bound() {
        let lengths = [100, 0, 40, 90, 3, 64, 2, 50, 1000];
        let (heads, most) = (4, 100_000);
        let pieces = group(&lengths, heads, most);
        assert_eq!(pieces, [vec![8], vec![0, 3], vec![5, 7, 2], vec![4, 6]]);
        for piece in pieces {
            let longest = lengths[piece[0]];
            let tiles = tiles(piece.len(), longest, heads, most);
            assert_eq!(tiles.iter().map(|(_, rows)| rows).sum::<usize>(), longest);
            for (first, rows) in tiles {
                assert!(piece.len() * heads * rows * (first + rows) <= most, "{longest}: {first} {rows}");
            }
        }
    }

    #[test]
    fn one_row_is_computed_even_if_its_scores_exceed_the_bound() {
        assert_eq!(group(&[3, 3], 4, 1), [[0], [1]]);
        assert_eq!(tiles(1, 3, 4, 1), [(0, 1), (1, 1), (2, 1)]);
    }
}
