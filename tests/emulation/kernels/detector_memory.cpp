// Shared and global memory: races, bounds, alignment.
#include "detector.hpp"

namespace swa::test {

using namespace ptx;

static const DetectorCase cases[] = {
    {"two_warps_write_one_word", 64, [](Scene& s) { s.words[s.t % 32] = 1; }},
    {"two_warps_write_their_words", 64, [](Scene& s) { s.words[s.t] = 1; }},
    {"read_of_neighbour", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       s.read(s.t ^ 1);
     }},
    {"read_of_neighbour_after_sync_warp", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       sync_warp();
       s.read(s.t ^ 1);
     }},
    {"read_of_other_warp_after_sync_warp", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       sync_warp();
       s.read(s.t ^ 32);
     }},
    {"read_of_other_warp_after_barrier", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       sync_threads();
       s.read(s.t ^ 32);
     }},
    {"shuffle_is_no_fence", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       shfl_xor(s.t, 1);
       s.read(s.t ^ 1);
     }},
    {"write_after_read", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       sync_threads();
       s.read(s.t ^ 32);
       s.words[s.t] = 2;
     }},
    {"write_after_read_and_barrier", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       sync_threads();
       s.read(s.t ^ 32);
       sync_threads();
       s.words[s.t] = 2;
     }},
    {"halves_of_a_word_race", 32,
     [](Scene& s) {
       SharedPointer<uint16_t> halves(reinterpret_cast<uint16_t*>(s.smem.words));
       halves[s.t] = uint16_t(s.t);
       (void)uint16_t(halves[s.t ^ 2]);
     }},
    {"halves_of_a_word_by_two_threads", 32,
     [](Scene& s) {
       SharedPointer<uint16_t> halves(reinterpret_cast<uint16_t*>(s.smem.words));
       halves[s.t] = uint16_t(s.t);
       sync_warp();
       (void)uint16_t(halves[s.t ^ 2]);
     }},
    {"half_warps_with_masks", 32,
     [](Scene& s) {
       const uint32_t mask = s.t < 16 ? 0xffffu : 0xffff0000u;
       s.words[s.t] = 1;
       sync_warp(mask);
       s.read(s.t ^ 1);
     }},
    {"half_warps_wrong_mask", 32,
     [](Scene& s) {
       const uint32_t mask = s.t < 16 ? 0xffffu : 0xffff0000u;
       s.words[s.t] = 1;
       sync_warp(mask);
       s.read(s.t ^ 16);
     }},
    {"uninitialized", 32, [](Scene& s) { s.read(s.t); }},
    {"shared_out_of_bounds", 32,
     [](Scene& s) {
       sts(s.tile + uint32_t(sizeof(Scene::Storage)) - 64 + uint32_t(s.t) * 4, s.t);
     }},
    {"shared_below_start", 32, [](Scene& s) { (void)lds<uint32_t>(s.tile - 4); }},
    {"shared_offset_as_address", 32, [](Scene& s) { sts(uint32_t(s.t) * 4, 1u); }},
    {"shared_misaligned", 32, [](Scene& s) { sts(s.words_at + 8, U32x4{}); }},
    {"wild_pointer", 32,
     [](Scene& s) {
       volatile uint8_t* p = s.smem.tile[0];
       p[400 << 10] = 1;
     }},
    {"global_read", 32, [](Scene& s) { (void)ldg<uint32_t>(s.source + s.t); }},
    {"global_read_past_end", 32, [](Scene& s) { (void)ldg<uint32_t>(s.source + 1000 + s.t); }},
    {"global_read_before_start", 32, [](Scene& s) { (void)ldg<uint32_t>(s.source - 1); }},
    {"global_pointer_past_end", 32,
     [](Scene& s) {
       GlobalPointer<const uint32_t> p = s.source;
       (void)uint32_t(p[1024]);
     }},
    {"global_write", 32, [](Scene& s) { stg(s.sink + s.t, 1u); }},
    {"global_write_past_end", 32, [](Scene& s) { stg(s.sink + 1020 + s.t * 4, U32x4{}); }},
    {"global_write_to_input", 32, [](Scene& s) { stg(const_cast<uint32_t*>(s.source) + s.t, 1u); }},
    {"global_misaligned", 32, [](Scene& s) { (void)ldg<U32x4>(s.source + 1 + 4 * s.t); }},
    {"cp_async", 64,
     [](Scene& s) {
       cp_async<16>(s.word_address(s.t * 4), s.source + s.t * 4, 16);
       cp_async_commit();
       cp_async_wait<0>();
       sync_threads();
       s.read(s.t ^ 37);
     }},
    {"cp_async_not_waited_for", 64,
     [](Scene& s) {
       cp_async<16>(s.word_address(s.t * 4), s.source + s.t * 4, 16);
       cp_async_commit();
       s.read(s.t * 4);
       cp_async_wait<0>();
     }},
    {"cp_async_not_committed", 64,
     [](Scene& s) {
       cp_async<16>(s.word_address(s.t * 4), s.source + s.t * 4, 16);
       cp_async_wait<0>();
       s.read(s.t * 4);
     }},
    {"cp_async_one_group_too_few", 32,
     [](Scene& s) {
       for (int i = 0; i < 2; ++i) {
         cp_async<4>(s.word_address(s.t + i * 32), s.source + s.t + i * 32, 4);
         cp_async_commit();
       }
       cp_async_wait<1>();
       s.read(s.t);
       s.read(s.t + 32);
       cp_async_wait<0>();
     }},
    {"cp_async_no_barrier", 64,
     [](Scene& s) {
       cp_async<16>(s.word_address(s.t * 4), s.source + s.t * 4, 16);
       cp_async_commit();
       cp_async_wait<0>();
       s.read(s.t ^ 37);
     }},
    {"cp_async_overwritten_in_flight", 32,
     [](Scene& s) {
       cp_async<4>(s.word_address(s.t), s.source + s.t, 4);
       cp_async_commit();
       s.words[s.t] = 1;
       cp_async_wait<0>();
     }},
    {"cp_async_into_words_being_read", 64,
     [](Scene& s) {
       s.words[s.t] = 1;
       sync_threads();
       s.read(s.t ^ 32);
       cp_async<4>(s.word_address(s.t), s.source + s.t, 4);
       cp_async_commit();
       cp_async_wait<0>();
     }},
    {"cp_async_at_exit", 32, [](Scene& s) { cp_async<4>(s.word_address(s.t), s.source + s.t, 4); }},
    {"cp_async_zero_fill_reads_nothing", 32,
     [](Scene& s) {
       cp_async<16>(s.word_address(s.t * 4), s.source + 4096 + s.t * 4, 0);
       cp_async_commit();
       cp_async_wait<0>();
       s.read(s.t * 4 + 3);
     }},
    {"cp_async_source_past_end", 32,
     [](Scene& s) { cp_async<16>(s.words_at, s.source + 1024, 16); }},
    {"cp_async_misaligned", 32, [](Scene& s) { cp_async<16>(s.words_at, s.source + 1, 16); }},
    {"cp_async_bad_size", 32, [](Scene& s) { cp_async<8>(s.words_at, s.source, 12); }},
    {"ldmatrix", 32,
     [](Scene& s) {
       uint32_t r[4];
       for (int i = 0; i < 4; ++i) s.words[s.t + i * 32] = 0;
       sync_warp();
       ldmatrix_x4(r, s.word_address(s.t * 4));
     }},
    {"ldmatrix_race", 64,
     [](Scene& s) {
       uint32_t r[4];
       for (int i = 0; i < 4; ++i) s.words[s.t * 4 + i] = 0;
       sync_warp();
       ldmatrix_x4(r, s.word_address((s.t ^ 32) * 4));
     }},
    {"ldmatrix_misaligned", 32,
     [](Scene& s) {
       uint32_t r[1];
       ldmatrix_x1(r, s.word_address(s.t));
     }},
    {"stmatrix", 64,
     [](Scene& s) {
       const uint32_t r[4] = {};
       stmatrix_x4(s.word_address(s.t * 4), r);
       sync_threads();
       s.read(s.t ^ 32);
     }},
    {"stmatrix_race", 64,
     [](Scene& s) {
       const uint32_t r[4] = {};
       stmatrix_x4(s.word_address(s.t * 4), r);
       s.read((s.t ^ 32) * 4);
     }},
};

}  // namespace swa::test
