/* SPDX-License-Identifier: MIT */
/*
 * Switching stacks: the only place that knows how.
 *
 * A Context is a flow of execution that is not running now: where its stack pointer is, and what
 * the sanitizers want to hear when it goes on. One is made for each coroutine stack and one for
 * each thread that runs coroutines. Small assembly on x86-64 and aarch64; ucontext elsewhere, and
 * where MERINO_COROUTINE_UCONTEXT is defined. Floating-point control words are not switched:
 * nothing here changes them.
 */
#ifndef MERINO_COROUTINE_SWITCH_H
#define MERINO_COROUTINE_SWITCH_H

#include <stdbool.h>
#include <stddef.h>

#if defined(MERINO_COROUTINE_UCONTEXT) || !(defined(__x86_64__) || defined(__aarch64__))
#define CONTEXT_UCONTEXT 1
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define CONTEXT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CONTEXT_ASAN 1
#endif
#endif

#if defined(__SANITIZE_THREAD__)
#define CONTEXT_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CONTEXT_TSAN 1
#endif
#endif

typedef struct Context {
#ifdef CONTEXT_UCONTEXT
    ucontext_t ucontext;
#else
    void *stack_pointer;
#endif
#ifdef CONTEXT_ASAN
    const void *stack_bottom;
    size_t stack_size;
    void *fake_stack;
#endif
#ifdef CONTEXT_TSAN
    void *fiber;
#endif
} Context;

/* A context that begins with `entry(opaque)` on the given stack when first switched to. `entry`
 * never returns. */
void context_init(Context *context, void *stack, size_t size, void (*entry)(void *), void *opaque);

/* Releases what context_init() took; the context must not be the running one. */
void context_done(Context *context);

/* The calling thread's own stack; needs no context_done(). */
void context_init_thread(Context *context);

/* Leave `from`, which is running, and go on with `to`. Returns when somebody switches back.
 * `last` says that `from` keeps no variables on its stack but those of uninstrumented callers. */
void context_switch(Context *from, Context *to, bool last);

/* To be called first thing by an `entry`. */
void context_entered(Context *context);

#endif
