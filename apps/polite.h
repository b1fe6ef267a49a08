// How a program's threads wait for one another.
#ifndef LV_APPS_POLITE_H
#define LV_APPS_POLITE_H

#include <stdlib.h>
#include <unistd.h>

// GCC's OpenMP spins 300,000 rounds by default: with another busy program on the machine the thread
// waited for does not run meanwhile. 1,000 rounds cost nothing on an idle machine; beside one busy
// process on 2 cores the demo model's prompt takes 20 ms instead of 1,000. The library reads this
// before main, so the program starts itself again.
static inline void wait_politely(char **argv) {
    if (!getenv("OMP_WAIT_POLICY") && !getenv("GOMP_SPINCOUNT")) {
        setenv("GOMP_SPINCOUNT", "1000", 1);
        execv("/proc/self/exe", argv); // goes on as it is where that fails
    }
}

#endif
