#include "simd.h"
#if defined(__AVX2__)
#include <cstdlib>
#include "gemm_pack.h"
#include "gemm_tile.h"
static constexpr int64_t kBlockBytes = 256 * 1024;
QUARTET_EXPORT void quartet_scaled_mm(const uint8_t* ac,const uint8_t* as,const uint8_t* bc,const uint8_t* bs,float* out,int32_t* status,int64_t M,int64_t N,int64_t G,float alpha,int64_t threads){
    Operand a{ac,as,M,G}, b{bc,bs,N,G};
    Range ra=scale_range(a), rb=scale_range(b);
    int64_t mt=(M+kTileRows-1)/kTileRows, nt=(N+kTileColumns-1)/kTileColumns;
    RowGroup* A=(RowGroup*)aligned_alloc(64,(mt*G*sizeof(RowGroup)+63)/64*64);
    ColumnGroup* B=(ColumnGroup*)aligned_alloc(64,nt*G*sizeof(ColumnGroup));
    float*fa=(float*)malloc(mt*kTileRows*4),*fb=(float*)malloc(nt*kTileColumns*4);
    int64_t block=std::max<int64_t>(1,kBlockBytes/(G*(int64_t)sizeof(RowGroup)));
    int64_t blocks=(mt+block-1)/block; block=(mt+blocks-1)/blocks;
    int e=ra.high+rb.high-256-kLift; double scale=__builtin_ldexp(1.0,e);
    #pragma omp parallel num_threads(threads)
    {
      #pragma omp for schedule(dynamic) nowait
      for(int64_t i=0;i<nt;i++){ for(int c=0;c<kTileColumns;c++)fb[i*kTileColumns+c]=1; pack_columns(b,rb,i*kTileColumns,B+i*G,fb+i*kTileColumns);}
      #pragma omp for schedule(static)
      for(int64_t i=0;i<mt;i++){ for(int c=0;c<kTileRows;c++)fa[i*kTileRows+c]=alpha; pack_rows(a,ra,i*kTileRows,A+i*G,fa+i*kTileRows);}
      #pragma omp for schedule(dynamic)
      for(int64_t t=0;t<blocks*nt;t++){
        int64_t m0=t/nt*block, m1=std::min(mt,m0+block), n=t%nt;
        for(int64_t m=m0;m<m1;m++){
          alignas(64) float tile[kTileRows*kTileColumns];
          tile_product(A+m*G,B+n*G,G,tile);
          int64_t cols=std::min<int64_t>(kTileColumns,N-n*kTileColumns);
          for(int r=0;r<kTileRows&&m*kTileRows+r<M;r++){ float*o=out+(m*kTileRows+r)*N+n*kTileColumns; float f=fa[m*kTileRows+r]*(float)scale;
            for(int c=0;c<cols;c++)o[c]=tile[r*kTileColumns+c]*fb[n*kTileColumns+c]*f; }
        }
      }
    }
    free(A);free(B);free(fa);free(fb);
}
#endif
