// Windowed paged attention of one tile of queries: all query heads of some KV heads x some
// consecutive tokens of a sequence.
//
// Keys are walked in tiles of kTileKeys anchored at absolute positions. A tile's visible keys are
// gathered once into scratch, K transposed, and multiplied with blocks of query rows; the softmax
// is online. A key that a row does not see adds an exact zero to that row and a tile of which it
// sees nothing is skipped, so a row's bits do not depend on the rows it shares the tile with: not
// on the batch, the chunking or the number of threads. Nothing invisible is ever read.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>

#include "cpu/convert.h"
#include "cpu/dispatch.h"
#include "cpu/few_rows.h"
#include "cpu/gemm.h"
#include "cpu/simd.h"

namespace swa::cpu::SWA_ISA {

namespace {

constexpr int64_t kTileKeys = 32;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
static_assert(kTileKeys % kColumns == 0 && kTileKeys % kLanes == 0);

constexpr int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// Aligned memory of one thread, kept between calls because every tile needs it.
class Scratch {
 public:
  template <class T>
  T* take(int64_t count) {
    used_ = round_up(used_, 64);
    T* start = reinterpret_cast<T*>(memory_.get() + used_);
    used_ += count * int64_t(sizeof(T));
    return start;
  }
  void reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return;
    memory_.reset(static_cast<char*>(::operator new(size_t(bytes), std::align_val_t(64))));
    size_ = bytes;
  }

 private:
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t size_ = 0, used_ = 0;
};

template <class Product>
class TileAttention {
  static constexpr int64_t kDepth = Product::kDepth;
  static constexpr bool kPairs = kDepth == 2;

 public:
  TileAttention(const AttentionParams& p, const AttentionTile& tile, BadIndex& bad)
      : p_(p), tile_(tile), bad_(bad) {
    first_position_ = p.seqlens_k[tile.sequence] - p.query_len(tile.sequence) + tile.first_token;
    num_rows_ = tile.num_tokens * p.group_size;
    row_stride_ = std::max<int64_t>(num_rows_, kFewRows);
    k_steps_ = round_up(p.k.dim, kDepth * kLanes) / kDepth;
    v_columns_ = round_up(p.v.dim, kColumns);
    static thread_local Scratch scratch;
    const int64_t words = tile.num_heads * row_stride_ * (k_steps_ + v_columns_ + 2) +
                          kTileKeys * (k_steps_ * 2) + kTileKeys * v_columns_ * 3 +
                          kTileKeys * (kFewRows + 2 * kMaxRows);
    scratch.reserve(words * 4 + 2 * int64_t(sizeof(KeyRows)) + 16 * 64);
    rows_ = scratch.take<KeyRows>(1);
    next_rows_ = scratch.take<KeyRows>(1);
    all_queries_ = scratch.take<uint32_t>(tile.num_heads * row_stride_ * k_steps_);
    all_sums_ = scratch.take<float>(tile.num_heads * row_stride_ * v_columns_);
    all_largest_ = scratch.take<float>(tile.num_heads * row_stride_);
    all_total_ = scratch.take<float>(tile.num_heads * row_stride_);
    key_rows_ = scratch.take<uint32_t>(kTileKeys * k_steps_);
    keys_ = scratch.take<uint32_t>(k_steps_ * kTileKeys);
    values_ = scratch.take<uint32_t>(kTileKeys / kDepth * v_columns_);
    masked_values_ = scratch.take<uint32_t>(kTileKeys / kDepth * v_columns_);
    scores_ = scratch.take<float>(kFewRows * kTileKeys);
    odd_scores_ = scratch.take<float>(kMaxRows * kTileKeys);
    weights_ = scratch.take<uint32_t>(kMaxRows * kTileKeys);
    in_place_ = !kPairs && num_rows_ <= kFewRows && p.dtype == DType::kFloat32 &&
                p.k.dtype == DType::kFloat32 && p.v.dtype == DType::kFloat32 &&
                p.k.dim == k_steps_ && p.v.dim == v_columns_;
  }

  void run() {
    if (!walk()) return;
    if (in_place_ && !sums_finite()) {
      // 0 x NaN is NaN: once more, looking at the values before multiplying them.
      in_place_ = false;
      walk();
    }
    for (int64_t h = 0; h < tile_.num_heads; ++h) {
      enter(h);
      store_results();
    }
  }

 private:
  // False: a page does not exist.
  bool walk() {
    const int64_t begin = first_visible(first_position_);
    const int64_t end = std::max<int64_t>(begin, first_position_ + tile_.num_tokens);
    for (int64_t h = 0; h < tile_.num_heads; ++h) {
      enter(h);
      reset();
    }
    if (in_place_) set_visible_keys();
    // Heads inside tiles: the heads of a key are neighbours in memory, so a page of it is used up
    // before the next. The hardware does not see the rows of the next step coming.
    const auto locate_step = [&](int64_t key, int64_t h, KeyRows& rows) {
      return key >= end || locate(std::max(begin, key), std::min(end, key + kTileKeys), h, rows);
    };
    int64_t key = begin / kTileKeys * kTileKeys;
    if (!locate_step(key, 0, *rows_)) return false;
    if (key < end) prefetch(*rows_);
    for (; key < end; key += kTileKeys) {
      for (int64_t h = 0; h < tile_.num_heads; ++h) {
        const bool last_head = h + 1 == tile_.num_heads;
        const int64_t next_key = last_head ? key + kTileKeys : key;
        if (!locate_step(next_key, last_head ? 0 : h + 1, *next_rows_)) return false;
        if (next_key >= end) *next_rows_ = *rows_;
        enter(h);
        step(key, std::max(begin, key), std::min(end, key + kTileKeys));
        std::swap(rows_, next_rows_);
      }
    }
    return true;
  }

  // The current head's queries against keys first .. last - 1 of the tile that starts at
  // tile_start.
  void step(int64_t tile_start, int64_t first, int64_t last) {
    if (in_place_) return attend_in_place(tile_start, first, last);
    prefetch(*next_rows_);
    load_keys(*rows_);
    load_values(*rows_);
    for (int64_t row = 0; row < num_rows_; row += kMaxRows)
      attend(tile_start, row, std::min<int64_t>(kMaxRows, num_rows_ - row));
  }

  // Make the h-th KV head of the tile the current one.
  void enter(int64_t h) {
    kv_head_ = tile_.kv_head + h;
    queries_ = all_queries_ + h * row_stride_ * k_steps_;
    sums_ = all_sums_ + h * row_stride_ * v_columns_;
    largest_ = all_largest_ + h * row_stride_;
    total_ = all_total_ + h * row_stride_;
  }

  void reset() {
    load_queries();
    std::fill_n(sums_, num_rows_ * v_columns_, 0.0f);
    std::fill_n(largest_, row_stride_, kMinusInfinity);
    std::fill_n(total_, row_stride_, 0.0f);
  }

  int64_t position(int64_t row) const { return first_position_ + row / p_.group_size; }

  int64_t first_visible(int64_t position) const {
    return p_.window < 0 ? 0 : std::max<int64_t>(0, position - p_.window + 1);
  }

  void load_queries() {
    const int64_t seq = tile_.sequence;
    if (in_place_) std::fill_n(queries_, kFewRows * k_steps_, 0u);
    for (int64_t row = 0; row < num_rows_; ++row) {
      const int64_t token = tile_.first_token + row / p_.group_size;
      const int64_t head = kv_head_ * p_.group_size + row % p_.group_size;
      const char* q = p_.q + p_.offset(seq, token, p_.q_seq_stride, p_.q_token_stride) +
                      head * p_.q_head_stride;
      if (in_place_) {
        interleave_query(reinterpret_cast<const float*>(q), k_steps_, int(row),
                         reinterpret_cast<float*>(queries_));
      } else {
        load_words(p_.dtype, q, p_.k.dim, 1.0f, queries_ + row * k_steps_);
      }
    }
  }

  // A row of q or K as the product wants it: float32, or its bfloat16 as they are; zeros up to
  // k_steps_.
  void load_words(DType dtype, const char* from, int64_t dim, float scale, uint32_t* to) const {
    if constexpr (kPairs) {
      std::memcpy(to, from, size_t(dim) * 2);
    } else {
      to_float32(dtype, from, dim, scale, reinterpret_cast<float*>(to));
    }
    char* end = reinterpret_cast<char*>(to + k_steps_);
    char* filled = reinterpret_cast<char*>(to) + dim * 4 / kDepth;
    std::fill(filled, end, char(0));
  }

  // Where the visible keys of one tile lie; null for the others.
  struct KeyRows {
    const char* k[kTileKeys];
    const char* v[kTileKeys];
    float k_scale[kTileKeys], v_scale[kTileKeys];
  };

  // Look up the keys first .. last - 1, which lie in one tile, of the h-th KV head. False: a page
  // does not exist.
  bool locate(int64_t first, int64_t last, int64_t h, KeyRows& rows) {
    const int32_t* table = p_.block_table + tile_.sequence * p_.block_table_stride;
    const int64_t tile_start = first / kTileKeys * kTileKeys, kv_head = tile_.kv_head + h;
    std::fill_n(rows.k, kTileKeys, nullptr);
    for (int64_t key = first; key < last;) {
      const int64_t logical = key / p_.page_size;
      const int64_t page = table[logical];
      if (!p_.k.holds(page)) {
        bad_.record(tile_.sequence, logical, page);
        return false;
      }
      const int64_t index = page * p_.num_kv_heads + kv_head;
      const float k_scale = p_.k.scale ? p_.k.scale[index] : 1.0f;
      const float v_scale = p_.v.scale ? p_.v.scale[index] : 1.0f;
      const int64_t k_stride = p_.k.slot_stride(page), v_stride = p_.v.slot_stride(page);
      const int64_t slot = key - logical * p_.page_size;
      const char* k = p_.k.page(page, kv_head) + slot * k_stride;
      const char* v = p_.v.page(page, kv_head) + slot * v_stride;
      const int64_t stop = std::min(last, (logical + 1) * p_.page_size);
      for (; key < stop; ++key, k += k_stride, v += v_stride) {
        const int64_t i = key - tile_start;
        rows.k[i] = k;
        rows.v[i] = v;
        rows.k_scale[i] = k_scale;
        rows.v_scale[i] = v_scale;
      }
    }
    return true;
  }

  void prefetch(const KeyRows& rows) const {
    for (int64_t i = 0; i < kTileKeys; ++i) {
      if (!rows.k[i]) continue;
      prefetch(rows.k[i], p_.k.dim * size_of(p_.k.dtype));
      prefetch(rows.v[i], p_.v.dim * size_of(p_.v.dtype));
    }
  }
  static void prefetch(const char* row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
  }

  // keys_ [k_steps_, kTileKeys]: a word holds one float32, or two neighbouring bfloat16 of one key.
  void load_keys(const KeyRows& rows) {
    const bool direct = (kPairs || p_.k.dtype == DType::kFloat32) && p_.k.dim == k_steps_ * kDepth;
    const uint32_t* words[kTileKeys];
    for (int64_t i = 0; i < kTileKeys; ++i) {
      uint32_t* own = key_rows_ + i * k_steps_;
      words[i] = own;
      if (!rows.k[i]) {
        std::fill_n(own, k_steps_, 0u);
      } else if (direct) {
        words[i] = reinterpret_cast<const uint32_t*>(rows.k[i]);
      } else {
        load_words(p_.k.dtype, rows.k[i], p_.k.dim, rows.k_scale[i], own);
      }
    }
    for (int64_t i = 0; i < kTileKeys; i += kLanes) {
      for (int64_t k = 0; k < k_steps_; k += kLanes) {
        Word block[kLanes];
        for (int j = 0; j < kLanes; ++j) block[j] = load<Word>(words[i + j] + k);
        transpose(block);
        for (int j = 0; j < kLanes; ++j) store(keys_ + (k + j) * kTileKeys + i, block[j]);
      }
    }
  }

  // values_ [kTileKeys / kDepth, v_columns_]: a word holds one float32, or the bfloat16 of two
  // neighbouring keys. Sets values_finite_.
  void load_values(const KeyRows& rows) {
    if constexpr (kPairs) {
      static constexpr int64_t kStack = 512;
      static const uint16_t zeros[kStack] = {};
      for (int64_t i = 0; i < kTileKeys; i += 2) {
        uint32_t* to = values_ + i / 2 * v_columns_;
        for (int64_t at = 0; at < p_.v.dim; at += kStack) {
          const auto* even = rows.k[i] ? reinterpret_cast<const uint16_t*>(rows.v[i]) + at : zeros;
          const auto* odd =
              rows.k[i + 1] ? reinterpret_cast<const uint16_t*>(rows.v[i + 1]) + at : zeros;
          const int64_t count = std::min(kStack, p_.v.dim - at);
          for (int64_t d = 0; d < count; ++d) to[at + d] = even[d] | uint32_t(odd[d]) << 16;
        }
        std::fill(to + p_.v.dim, to + v_columns_, 0u);
      }
    } else {
      if (p_.v.dtype == DType::kFloat32 && p_.v.dim == v_columns_) return copy_values(rows);
      for (int64_t i = 0; i < kTileKeys; ++i) {
        auto* to = reinterpret_cast<float*>(values_ + i * v_columns_);
        if (rows.k[i]) to_float32(p_.v.dtype, rows.v[i], p_.v.dim, rows.v_scale[i], to);
        std::fill(rows.k[i] ? to + p_.v.dim : to, to + v_columns_, 0.0f);
      }
    }
    Word special{};
    for (int64_t i = 0; i < kTileKeys / kDepth * v_columns_; i += kLanes)
      special |= special_bits(load<Word>(values_ + i));
    values_finite_ = none_special(special);
  }

  // Rows that are whole as they are: copied and looked at in one pass.
  void copy_values(const KeyRows& rows) {
    Word special[2] = {};
    for (int64_t i = 0; i < kTileKeys; ++i) {
      uint32_t* to = values_ + i * v_columns_;
      if (!rows.k[i]) {
        std::fill_n(to, v_columns_, 0u);
        continue;
      }
      const auto* from = reinterpret_cast<const uint32_t*>(rows.v[i]);
      for (int64_t d = 0; d < v_columns_; d += kColumns) {
        for (int64_t j = 0; j < kColumns; j += kLanes) {
          const Word word = load<Word>(from + d + j);
          special[j / kLanes % 2] |= special_bits(word);
          store(to + d + j, word);
        }
      }
    }
    values_finite_ = none_special(special[0] | special[1]);
  }

  // The top bit of an element is set if it is infinite or NaN: if its exponent has all bits set,
  // one more at its end carries over.
  static Word special_bits(Word word) {
    constexpr uint32_t kExponents = kPairs ? 0x7f807f80u : 0x7f800000u;
    constexpr uint32_t kOnes = kPairs ? 0x00800080u : 0x00800000u;
    return (word & kExponents) + kOnes;
  }
  static bool none_special(Word bits) {
    constexpr uint32_t kTop = kPairs ? 0x80008000u : 0x80000000u;
    uint32_t found = 0;
    for (int i = 0; i < kLanes; ++i) found |= bits[i];
    return (found & kTop) == 0;
  }

  // Rows row .. row + count - 1 against the tile in scratch.
  void attend(int64_t tile_start, int64_t row, int64_t count) {
    const int64_t newest = position(row + count - 1);
    if (newest < tile_start || first_visible(position(row)) >= tile_start + kTileKeys) return;
    score(row, count);
    for (int64_t i = 0; i < count; ++i) soften(tile_start, row + i, scores_ + i * kTileKeys, i);
    constexpr int64_t kSteps = kTileKeys / kDepth;
    if (values_finite_) {
      multiply<Product>(Left<>{weights_, kSteps}, Right{values_, v_columns_},
                        sums_ + row * v_columns_, v_columns_, count, v_columns_, kSteps, true);
      return;
    }
    // 0 x NaN is NaN: a row must not meet a value that only other rows of the block see.
    for (int64_t i = 0; i < count; ++i) {
      mask_values(tile_start, row + i);
      multiply<Product>(Left<>{weights_ + i * kSteps, kSteps}, Right{masked_values_, v_columns_},
                        sums_ + (row + i) * v_columns_, v_columns_, 1, v_columns_, kSteps, true);
    }
  }

  // scores_ [count, kTileKeys] of rows row .. against the tile in scratch.
  void score(int64_t row, int64_t count) {
    const uint32_t* queries = queries_ + row * k_steps_;
    if constexpr (kPairs) {
      multiply<Product>(Left<>{queries, k_steps_}, Right{keys_, kTileKeys}, scores_, kTileKeys,
                        count, kTileKeys, k_steps_, false);
    } else {  // a chain over the even elements and one over the odd, as score_keys() has them
      const auto half = [&](int64_t odd, float* scores) {
        multiply<Product>(Left<2>{queries + odd, k_steps_},
                          Right{keys_ + odd * kTileKeys, 2 * kTileKeys}, scores, kTileKeys, count,
                          kTileKeys, k_steps_ / 2, false);
      };
      half(0, scores_);
      half(1, odd_scores_);
      for (int64_t i = 0; i < count * kTileKeys; i += kLanes)
        store(scores_ + i, load<Float>(scores_ + i) + load<Float>(odd_scores_ + i));
    }
  }

  // All rows against the keys first .. last - 1 of the tile that starts at tile_start, where they
  // lie; those of the next step are fetched on the way.
  void attend_in_place(int64_t tile_start, int64_t first, int64_t last) {
    const int64_t at = first - tile_start, count = last - first;
    const char *next_k[kTileKeys], *next_v[kTileKeys];
    for (int64_t i = 0; i < kTileKeys; ++i) {
      const bool some = next_rows_->k[i];
      next_k[i] = some ? next_rows_->k[i] : rows_->k[at];
      next_v[i] = some ? next_rows_->v[i] : rows_->v[at];
    }
    const auto floats = [](const char** rows) { return reinterpret_cast<const float**>(rows); };
    std::fill_n(scores_, at * kFewRows, 0.0f);
    std::fill_n(scores_ + (at + count) * kFewRows, (kTileKeys - at - count) * kFewRows, 0.0f);
    score_keys(floats(rows_->k + at), floats(next_k + at), count,
               reinterpret_cast<const float*>(queries_), p_.k.dim, scores_ + at * kFewRows);
    soften_in_place(tile_start);
    const Weights weights{reinterpret_cast<const uint32_t*>(scores_) + at * kFewRows};
    multiply<Product>(weights, Values{rows_->v + at, next_v + at}, sums_, v_columns_, num_rows_,
                      v_columns_, count, true);
  }

  // The operands of the product with V in place: weights [keys, kFewRows], and rows of V where they
  // lie, with rows to fetch beside them.
  struct Weights {
    const uint32_t* words;
    uint32_t operator()(int64_t i, int64_t k) const { return words[k * kFewRows + i]; }
    Weights from_row(int64_t i) const { return {words + i}; }
  };
  struct Values {
    const char *const *rows, *const *next;
    int64_t offset = 0;
    const uint32_t* operator()(int64_t k) const {
      prefetch(next[k] + offset, kColumns * 4);
      return reinterpret_cast<const uint32_t*>(rows[k] + offset);
    }
    Values from_column(int64_t n) const { return {rows, next, offset + n * 4}; }
  };

  // soften() for all rows at once: scores_ [kTileKeys, kFewRows] become weights.
  void soften_in_place(int64_t tile_start) {
    FewFloat highest = FewFloat{} + kMinusInfinity;
    for (int j = 0; j < kTileKeys; j += 2) {
      FewFloat s = load<FewFloat>(scores_ + j * kFewRows) * p_.softmax_scale;
      if (p_.softcap > 0) s = tanh(s / p_.softcap) * p_.softcap;
      s = visible_to_rows(tile_start + j) ? s : FewFloat{} + kMinusInfinity;
      highest = s > highest ? s : highest;
      store(scores_ + j * kFewRows, s);
    }
    const FewFloat other = swap_halves(highest), before = load_rows(largest_);
    highest = highest > other ? highest : other;
    const FewFloat now = highest > before ? highest : before;
    const FewFloat keep = before == now ? FewFloat{} + 1.0f : exp_negative(before - now);
    for (int j = 0; j < kTileKeys; j += 2) {
      const FewFloat s = load<FewFloat>(scores_ + j * kFewRows);
      store(scores_ + j * kFewRows,
            visible_to_rows(tile_start + j) ? exp_negative(s - now) : FewFloat{});
    }
    store_rows(largest_, now);
    store_rows(total_, load_rows(total_) * keep + sum_keys<kTileKeys>(scores_));
    for (int64_t row = 0; row < num_rows_; ++row) {
      if (keep[row] == 1.0f) continue;
      float* sums = sums_ + row * v_columns_;
      for (int64_t d = 0; d < v_columns_; d += kLanes)
        store(sums + d, load<Float>(sums + d) * keep[row]);
    }
  }

  // Which rows see key (the lower lanes) and key + 1 (the upper).
  FewInt visible_to_rows(int64_t key) const {
    const FewInt at = FewInt{} + int(key);
    return (at >= first_key_) & (at < last_key_);
  }

  void set_visible_keys() {
    for (int lane = 0; lane < kFewLanes; ++lane) {
      const int64_t at = position(std::min<int64_t>(lane % kFewRows, num_rows_ - 1));
      first_key_[lane] = int(first_visible(at)) - lane / kFewRows;
      last_key_[lane] = int(at) + 1 - lane / kFewRows;
    }
  }

  bool sums_finite() const {
    Word special{};
    for (int64_t h = 0; h < tile_.num_heads; ++h) {
      const float* sums = all_sums_ + h * row_stride_ * v_columns_;
      for (int64_t i = 0; i < num_rows_ * v_columns_; i += kLanes)
        special |= special_bits(load<Word>(sums + i));
    }
    return none_special(special);
  }

  // masked_values_ = values_ with zeros for the keys that `row` does not see.
  void mask_values(int64_t tile_start, int64_t row) {
    const int64_t first = first_visible(position(row)) - tile_start,
                  last = position(row) + 1 - tile_start;
    const auto sees = [&](int64_t key) { return first <= key && key < last; };
    for (int64_t i = 0; i < kTileKeys / kDepth; ++i) {
      uint32_t keep = sees(i * kDepth) ? ~0u : 0u;
      if (kPairs) keep = (keep & 0xffffu) | (sees(i * kDepth + 1) ? 0xffff0000u : 0u);
      for (int64_t d = 0; d < v_columns_; ++d) {
        masked_values_[i * v_columns_ + d] = values_[i * v_columns_ + d] & keep;
      }
    }
  }

  // One row's step of the online softmax: scores -> weights_[i], with the row's running state
  // brought up to date.
  void soften(int64_t tile_start, int64_t row, float* scores, int64_t i) {
    const int64_t at = position(row);
    const int64_t first = std::max<int64_t>(0, first_visible(at) - tile_start);
    const int64_t last = std::min(kTileKeys, at + 1 - tile_start);
    uint32_t* weights = weights_ + i * (kTileKeys / kDepth);
    if (first >= last) {
      std::fill_n(weights, kTileKeys / kDepth, 0u);
      return;
    }
    Float highest = broadcast(kMinusInfinity);
    for (int64_t j = 0; j < kTileKeys; j += kLanes) {
      Float s = load<Float>(scores + j) * p_.softmax_scale;
      if (p_.softcap > 0) s = tanh(s / p_.softcap) * p_.softcap;
      s = visible(j, first, last) ? s : broadcast(kMinusInfinity);
      highest = s > highest ? s : highest;
      store(scores + j, s);
    }
    const float before = largest_[row], now = std::max(before, max(highest));
    const float keep = before == now ? 1.0f : exp_negative(broadcast(before - now))[0];
    Float added{};
    for (int64_t j = 0; j < kTileKeys; j += kLanes) {
      const Float s = load<Float>(scores + j);
      const Float w = visible(j, first, last) ? exp_negative(s - now) : Float{};
      added += w;
      store(scores + j, w);
    }
    largest_[row] = now;
    total_[row] = total_[row] * keep + sum(added);
    if (keep != 1.0f) {
      float* sums = sums_ + row * v_columns_;
      for (int64_t d = 0; d < v_columns_; d += kLanes)
        store(sums + d, load<Float>(sums + d) * keep);
    }
    Product::pack(scores, kTileKeys, weights);
  }

  // Which of the lanes j .. of a tile lie in [first, last).
  static Int visible(int64_t j, int64_t first, int64_t last) {
    Int lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i + int(j);
    return (lane >= int(first)) & (lane < int(last));
  }

  void store_results() {
    const int64_t seq = tile_.sequence, num_heads = p_.num_kv_heads * p_.group_size;
    for (int64_t row = 0; row < num_rows_; ++row) {
      const int64_t token = tile_.first_token + row / p_.group_size;
      const int64_t head = kv_head_ * p_.group_size + row % p_.group_size;
      float* sums = sums_ + row * v_columns_;
      float lse = kMinusInfinity;
      if (total_[row] != 0) {  // NaN included: it must show
        lse = largest_[row] + std::log(total_[row]);
        const float sink = p_.sinks ? std::exp(p_.sinks[head] - largest_[row]) : 0.0f;
        const float factor = 1.0f / (total_[row] + sink);
        for (int64_t d = 0; d < p_.v.dim; ++d) sums[d] *= factor;
      }
      from_float32(p_.dtype, sums, p_.v.dim, 1.0f,
                   p_.out + p_.offset(seq, token, p_.out_seq_stride, p_.out_token_stride) +
                       head * p_.out_head_stride);
      p_.lse[(p_.first_row(seq) + token) * num_heads + head] = lse;
    }
  }

  const AttentionParams& p_;
  const AttentionTile& tile_;
  BadIndex& bad_;
  int64_t first_position_, num_rows_, k_steps_, v_columns_;
  int64_t row_stride_;           // rows of scratch that a head has
  bool in_place_;                // few rows against float32 that needs no conversion
  FewInt first_key_, last_key_;  // that the rows see, for visible_to_rows()
  KeyRows *rows_, *next_rows_;   // of this step and the next
  uint32_t* all_queries_;        // the four of all heads, one head after the other
  float *all_sums_, *all_largest_, *all_total_;
  int64_t kv_head_ = 0;      // the current one, and its:
  uint32_t* queries_;        // [num_rows_, k_steps_]; in place [k_steps_ / 2, kFewRows, 2]
  float* sums_;              // [num_rows_, v_columns_]
  float* largest_;           // [num_rows_]
  float* total_;             // [num_rows_]
  uint32_t* key_rows_;       // [kTileKeys, k_steps_]
  uint32_t* keys_;           // [k_steps_, kTileKeys]
  uint32_t* values_;         // [kTileKeys / kDepth, v_columns_]
  uint32_t* masked_values_;  // the same, for one row
  bool values_finite_ = true;
  float* scores_;      // [kMaxRows, kTileKeys]; in place [kTileKeys, kFewRows]
  float* odd_scores_;  // [kMaxRows, kTileKeys]
  uint32_t* weights_;  // [kMaxRows, kTileKeys / kDepth]
};

}  // namespace

void attention(const AttentionParams& p, const AttentionTile& tile, BadIndex& bad) {
#ifdef __AVX512BF16__
  if (p.dtype == DType::kBFloat16 && p.k.dtype == DType::kBFloat16) {
    TileAttention<PairProduct>(p, tile, bad).run();
    return;
  }
#endif
  TileAttention<PlainProduct>(p, tile, bad).run();
}

}  // namespace swa::cpu::SWA_ISA
