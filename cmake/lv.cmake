# Shared settings, and one function a kind of target.
find_package(PkgConfig REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)

add_library(lv_settings INTERFACE)
target_include_directories(lv_settings INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(lv_settings INTERFACE _GNU_SOURCE LV_VERSION="${PROJECT_VERSION}")
target_compile_options(lv_settings INTERFACE
  $<$<COMPILE_LANGUAGE:C,CXX>:-Wall -Wextra -Wshadow -Wconversion -Werror -fno-math-errno>
  $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes -Wmissing-prototypes>)
if(LV_SANITIZE STREQUAL "address")
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=undefined)
elseif(LV_SANITIZE STREQUAL "thread")
  set(sanitizers -fsanitize=thread)
elseif(LV_SANITIZE)
  message(FATAL_ERROR "LV_SANITIZE is \"${LV_SANITIZE}\": expected address or thread")
endif()
if(LV_SANITIZE)
  target_compile_options(lv_settings INTERFACE
    $<$<COMPILE_LANGUAGE:C,CXX>:${sanitizers} -fno-omit-frame-pointer>)
  target_link_options(lv_settings INTERFACE ${sanitizers})
endif()

# lv_library(name deps...): the folder's sources as one static library.
function(lv_library name)
  file(GLOB sources CONFIGURE_DEPENDS *.c *.cc)
  add_library(lv_${name} STATIC ${sources})
  target_link_libraries(lv_${name} PUBLIC lv_settings ${ARGN})
endfunction()
