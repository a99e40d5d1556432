/* SPDX-License-Identifier: MIT */
/*
 * HBitmap: memory for blocks (directories and pages).
 *
 * All blocks have one size and come from chunks of 2 MiB. A bitmap that is
 * created, copied or scanned touches thousands of them at once, and with single
 * allocations page faults and TLB misses would cost several times what the
 * bits do. So a process that has filled a few chunks gets the next ones as huge
 * pages; before that, memory is asked for in small steps, and a process with
 * few bits dirty stays small.
 *
 * Free blocks wait in their chunk. An empty chunk is unmapped, but one is kept while
 * the others are in use, so that copying and dropping a bitmap again and again
 * does not return to the kernel each time.
 *
 * Any thread. Under the sanitizers each block is an allocation of its own, so that
 * they see a block that is used after it was freed.
 */
#include "hbitmap-internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SINGLE_BLOCKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SINGLE_BLOCKS 1
#endif
#endif
#ifndef SINGLE_BLOCKS
#define SINGLE_BLOCKS 0
#endif

enum {
    BLOCK_BYTES = sizeof(HbPage),
    CHUNK_BYTES = 2 * 1024 * 1024,
    CHUNK_BLOCKS = (CHUNK_BYTES - 64) / BLOCK_BYTES,

    /* How much of a chunk without huge pages is asked for at a time. */
    STEP_BYTES = 64 * 1024,

    /* From this many chunks on, new ones are huge pages: at most a third is then unused. */
    FEW_CHUNKS = 2,

    /* With fewer blocks in use than this no empty chunk is kept. */
    FEW_BLOCKS = CHUNK_BLOCKS,
};

G_STATIC_ASSERT(sizeof(HbDir) == BLOCK_BYTES);

typedef struct FreeBlock FreeBlock;
struct FreeBlock {
    FreeBlock *next;
};

/* A chunk begins with this; blocks follow at 64 bytes. It is aligned to its size. */
typedef struct Chunk Chunk;
struct Chunk {
    Chunk *prev, *next; /* in `open_chunks`, while it has blocks to give */
    FreeBlock *free;
    unsigned used;  /* blocks in use */
    unsigned fresh; /* blocks that were never used begin at this index */
    size_t ready;   /* bytes asked for; all of them with huge pages */
};

G_STATIC_ASSERT(sizeof(Chunk) <= 64);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Chunk *open_chunks; /* under `lock`, as is all that follows */
static Chunk *spare;       /* one of open_chunks that is empty, or NULL */
static unsigned n_chunks;
static size_t n_blocks; /* in use */

static void chunk_open(Chunk *c)
{
    c->prev = NULL;
    c->next = open_chunks;
    if (c->next) {
        c->next->prev = c;
    }
    open_chunks = c;
}

static void chunk_close(Chunk *c)
{
    if (c->prev) {
        c->prev->next = c->next;
    } else {
        open_chunks = c->next;
    }
    if (c->next) {
        c->next->prev = c->prev;
    }
}

/* Address space of twice the size always holds an aligned chunk; the rest goes back. */
static void *map_aligned(void)
{
    uint8_t *at = mmap(NULL, 2 * CHUNK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        g_error("out of memory for a bitmap page");
    }
    size_t before = -(uintptr_t)at % CHUNK_BYTES;
    if (before > 0) {
        munmap(at, before);
    }
    munmap(at + before + CHUNK_BYTES, CHUNK_BYTES - before);
    return at + before;
}

static void chunk_new(void)
{
    Chunk *c = map_aligned();

    if (n_chunks >= FEW_CHUNKS && madvise(c, CHUNK_BYTES, MADV_HUGEPAGE) == 0) {
        c->ready = CHUNK_BYTES;
    }
    n_chunks++;
    chunk_open(c);
}

/* The next block that was never used. The kernel gives several pages at once for less. */
static void *chunk_fresh_block(Chunk *c)
{
    uint8_t *block = (uint8_t *)c + 64 + (size_t)c->fresh++ * BLOCK_BYTES;
    size_t end = block + BLOCK_BYTES - (uint8_t *)c;

    if (end > c->ready) {
#ifdef MADV_POPULATE_WRITE
        /* Older kernels refuse it; the pages then come one by one as they are touched. */
        (void)madvise((uint8_t *)c + c->ready, STEP_BYTES, MADV_POPULATE_WRITE);
#endif
        c->ready += STEP_BYTES;
    }
    return block;
}

static void *block_take(void)
{
    if (!open_chunks) {
        chunk_new();
    }
    Chunk *c = open_chunks;
    void *block = c->free;
    if (block) {
        c->free = c->free->next;
        __builtin_prefetch(c->free, 1); /* whoever takes many looks there next */
    } else {
        block = chunk_fresh_block(c);
    }
    if (c == spare) {
        spare = NULL;
    }
    n_blocks++;
    if (++c->used == CHUNK_BLOCKS) {
        chunk_close(c);
    }
    return block;
}

static void chunk_drop(Chunk *c)
{
    chunk_close(c);
    munmap(c, CHUNK_BYTES);
    n_chunks--;
}

static void block_give(void *block)
{
    Chunk *c = (Chunk *)((uintptr_t)block & ~(uintptr_t)(CHUNK_BYTES - 1));
    FreeBlock *f = block;

    f->next = c->free;
    c->free = f;
    n_blocks--;
    if (c->used-- == CHUNK_BLOCKS) {
        chunk_open(c);
    }
    if (c->used == 0) {
        if (spare) {
            chunk_drop(c);
        } else {
            spare = c;
        }
    }
    if (spare && n_blocks < FEW_BLOCKS) {
        chunk_drop(spare);
        spare = NULL;
    }
}

void *hb_block_alloc(void)
{
    if (SINGLE_BLOCKS) {
        void *block = aligned_alloc(64, BLOCK_BYTES);
        if (!block) {
            g_error("out of memory for a bitmap page");
        }
        return block;
    }
    pthread_mutex_lock(&lock);
    void *block = block_take();
    pthread_mutex_unlock(&lock);
    return block;
}

void hb_block_free(void *block)
{
    if (SINGLE_BLOCKS) {
        free(block);
        return;
    }
    pthread_mutex_lock(&lock);
    block_give(block);
    pthread_mutex_unlock(&lock);
}
