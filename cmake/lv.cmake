# Shared settings, and one function a kind of target.
find_package(PkgConfig REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)

add_library(lv_settings INTERFACE)
target_include_directories(lv_settings INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(lv_settings INTERFACE _GNU_SOURCE LV_VERSION="${PROJECT_VERSION}")
target_compile_options(lv_settings INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wshadow -Wconversion -Werror -fno-math-errno>
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes>)
set(sanitizes 1)
if(LV_SANITIZE STREQUAL "address")
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=undefined)
elseif(LV_SANITIZE STREQUAL "thread")
  # Not the kernels: libgomp is not built for it, and every parallel loop would be taken for a race.
  # What they read and write belongs to the thread that runs the backend.
  set(sanitizers -fsanitize=thread)
  set(sanitizes $<NOT:$<STREQUAL:$<TARGET_PROPERTY:NAME>,lv_kernels>>)
elseif(LV_SANITIZE)
  message(FATAL_ERROR "LV_SANITIZE is \"${LV_SANITIZE}\": expected address or thread")
endif()
if(LV_SANITIZE)
  set(sanitizes $<AND:$<COMPILE_LANGUAGE:C,CXX>,${sanitizes}>)
  target_compile_options(lv_settings INTERFACE
    "$<${sanitizes}:${sanitizers};-fno-omit-frame-pointer>")
  target_link_options(lv_settings INTERFACE ${sanitizers})
endif()

# lv_library(name deps...): the folder's sources as one static library.
function(lv_library name)
  file(GLOB sources CONFIGURE_DEPENDS *.c *.cc)
  add_library(lv_${name} STATIC ${sources})
  target_link_libraries(lv_${name} PUBLIC lv_settings ${ARGN})
endfunction()
