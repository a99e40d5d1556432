/* SPDX-License-Identifier: MIT */
#include "coroutine-switch.h"

#include <stdint.h>
#include <string.h>

#ifdef CONTEXT_ASAN
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CONTEXT_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/*
 * The functions that stand on a stack while it is left must not be instrumented: the address
 * sanitizer would keep their variables in a fake stack that the last switch gives back, the
 * thread sanitizer would count a call on one fiber and the return on another.
 */
#define UNINSTRUMENTED __attribute__((no_sanitize_address, no_sanitize_thread, noinline))

#ifdef CONTEXT_UCONTEXT

static void stack_init(Context *context, void *stack, size_t size, void (*entry)(void *),
                       void *opaque)
{
    uintptr_t address = (uintptr_t)opaque;

    getcontext(&context->ucontext);
    context->ucontext.uc_stack.ss_sp = stack;
    context->ucontext.uc_stack.ss_size = size;
    context->ucontext.uc_link = NULL;
    /* makecontext() passes ints, but any machine that has a 64-bit pointer passes it whole in the
     * register of its first argument; the 32-bit ones have nothing to lose. */
    makecontext(&context->ucontext, (void (*)(void))entry, 1, address);
}

UNINSTRUMENTED static void stack_switch(Context *from, Context *to)
{
    swapcontext(&from->ucontext, &to->ucontext);
}

#else

/*
 * merino_context_switch(void **save, void *load): push what the ABI says a callee keeps, store
 * the stack pointer in *save, take `load` for it and pop the same things. On x86-64 it jumps back
 * where a `ret` would always be mispredicted: the processor expects returns in the order of calls.
 * merino_context_entry: where a new stack goes on; calls its function with its argument, which
 * stack_init() left in two of the popped registers. It is the outermost frame for unwinders.
 */
void merino_context_switch(void **save, void *load);
void merino_context_entry(void);

#if defined(__x86_64__)

__asm__(".text\n"
        ".p2align 4\n"
        ".globl merino_context_switch\n"
        ".hidden merino_context_switch\n"
        ".type merino_context_switch, @function\n"
        "merino_context_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    popq %rcx\n"
        "    jmpq *%rcx\n"
        ".size merino_context_switch, . - merino_context_switch\n"
        ".p2align 4\n"
        ".globl merino_context_entry\n"
        ".hidden merino_context_entry\n"
        ".type merino_context_entry, @function\n"
        "merino_context_entry:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined rip\n"
        "    movq %r12, %rdi\n"
        "    callq *%r13\n"
        "    ud2\n"
        "    .cfi_endproc\n"
        ".size merino_context_entry, . - merino_context_entry\n");

enum {
    FRAME_R15,
    FRAME_R14,
    FRAME_R13,
    FRAME_R12,
    FRAME_RBX,
    FRAME_RBP,
    FRAME_RETURN
};

/* Two words above the frame keep the stack aligned to 16 at the entry's call. */
#define FRAME_WORDS    9
#define FRAME_FUNCTION FRAME_R13
#define FRAME_ARGUMENT FRAME_R12

#elif defined(__aarch64__)

__asm__(".text\n"
        ".p2align 4\n"
        ".globl merino_context_switch\n"
        ".hidden merino_context_switch\n"
        ".type merino_context_switch, %function\n"
        "merino_context_switch:\n"
        "    sub sp, sp, #160\n"
        "    stp x19, x20, [sp, #0]\n"
        "    stp x21, x22, [sp, #16]\n"
        "    stp x23, x24, [sp, #32]\n"
        "    stp x25, x26, [sp, #48]\n"
        "    stp x27, x28, [sp, #64]\n"
        "    stp x29, x30, [sp, #80]\n"
        "    stp d8, d9, [sp, #96]\n"
        "    stp d10, d11, [sp, #112]\n"
        "    stp d12, d13, [sp, #128]\n"
        "    stp d14, d15, [sp, #144]\n"
        "    mov x9, sp\n"
        "    str x9, [x0]\n"
        "    mov sp, x1\n"
        "    ldp x19, x20, [sp, #0]\n"
        "    ldp x21, x22, [sp, #16]\n"
        "    ldp x23, x24, [sp, #32]\n"
        "    ldp x25, x26, [sp, #48]\n"
        "    ldp x27, x28, [sp, #64]\n"
        "    ldp x29, x30, [sp, #80]\n"
        "    ldp d8, d9, [sp, #96]\n"
        "    ldp d10, d11, [sp, #112]\n"
        "    ldp d12, d13, [sp, #128]\n"
        "    ldp d14, d15, [sp, #144]\n"
        "    add sp, sp, #160\n"
        "    ret\n"
        ".size merino_context_switch, . - merino_context_switch\n"
        ".p2align 4\n"
        ".globl merino_context_entry\n"
        ".hidden merino_context_entry\n"
        ".type merino_context_entry, %function\n"
        "merino_context_entry:\n"
        "    .cfi_startproc\n"
        "    .cfi_undefined x30\n"
        "    mov x0, x19\n"
        "    blr x20\n"
        "    brk #1\n"
        "    .cfi_endproc\n"
        ".size merino_context_entry, . - merino_context_entry\n");

enum {
    FRAME_X19,
    FRAME_X20,
    FRAME_RETURN = 11
};

#define FRAME_WORDS    20
#define FRAME_FUNCTION FRAME_X20
#define FRAME_ARGUMENT FRAME_X19

#endif

static void stack_init(Context *context, void *stack, size_t size, void (*entry)(void *),
                       void *opaque)
{
    uintptr_t top = ((uintptr_t)stack + size) & ~(uintptr_t)15;
    uintptr_t *frame = (uintptr_t *)top - FRAME_WORDS;

    memset(frame, 0, FRAME_WORDS * sizeof(*frame));
    frame[FRAME_ARGUMENT] = (uintptr_t)opaque;
    frame[FRAME_FUNCTION] = (uintptr_t)entry;
    frame[FRAME_RETURN] = (uintptr_t)merino_context_entry;
    context->stack_pointer = frame;
}

static inline __attribute__((always_inline)) void stack_switch(Context *from, Context *to)
{
    merino_context_switch(&from->stack_pointer, to->stack_pointer);
}

#endif

void context_init(Context *context, void *stack, size_t size, void (*entry)(void *), void *opaque)
{
    memset(context, 0, sizeof(*context));
    stack_init(context, stack, size, entry, opaque);
#ifdef CONTEXT_ASAN
    context->stack_bottom = stack;
    context->stack_size = size;
#endif
#ifdef CONTEXT_TSAN
    context->fiber = __tsan_create_fiber(0);
#endif
}

void context_done(Context *context)
{
#ifdef CONTEXT_TSAN
    __tsan_destroy_fiber(context->fiber);
    context->fiber = NULL;
#endif
}

void context_init_thread(Context *context)
{
    memset(context, 0, sizeof(*context));
#ifdef CONTEXT_ASAN
    pthread_attr_t attributes;
    void *bottom;

    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &bottom, &context->stack_size);
        context->stack_bottom = bottom;
        pthread_attr_destroy(&attributes);
    }
#endif
#ifdef CONTEXT_TSAN
    context->fiber = __tsan_get_current_fiber();
#endif
}

UNINSTRUMENTED void context_entered(Context *context)
{
#ifdef CONTEXT_ASAN
    __sanitizer_finish_switch_fiber(context->fake_stack, NULL, NULL);
#endif
}

UNINSTRUMENTED void context_switch(Context *from, Context *to, bool last)
{
#ifdef CONTEXT_ASAN
    __sanitizer_start_switch_fiber(last ? NULL : &from->fake_stack, to->stack_bottom,
                                   to->stack_size);
    if (last) {
        from->fake_stack = NULL;
    }
#endif
#ifdef CONTEXT_TSAN
    __tsan_switch_to_fiber(to->fiber, 0);
#endif
    stack_switch(from, to);
#ifdef CONTEXT_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}
