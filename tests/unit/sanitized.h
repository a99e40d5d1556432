/* SPDX-License-Identifier: MIT */
/*
 * SANITIZED: 1 in a build whose memory or thread sanitizer makes loops many times slower, so that
 * they take fewer turns; else 0.
 */
#ifndef MERINO_TESTS_SANITIZED_H
#define MERINO_TESTS_SANITIZED_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

#endif
